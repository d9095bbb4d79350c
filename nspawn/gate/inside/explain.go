package inside

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/user"
)

// Exit statuses of a command that cannot be run, the same as in shells.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// refuse returns a Failure whose cause is not the command's file.
func refuse(format string, args ...any) *Failure {
	return &Failure{Code: exitNotExecutable, Reason: fmt.Sprintf(format, args...)}
}

// explain returns why none of the files that a command may refer to could be executed.
func explain(command string, files []string, errno unix.Errno, env []string) *Failure {
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			return &Failure{Code: exitNotExecutable, Reason: file + ": " + explainFile(file, info, errno), Again: isTemporary(errno)}
		}
	}
	if errno != unix.ENOENT && errno != unix.ENOTDIR {
		return &Failure{Code: exitNotExecutable, Reason: command + ": " + errno.Error(), Again: isTemporary(errno)}
	}
	where := ""
	switch list, _ := user.LookupEnv(env, "PATH"); {
	case command == "init":
		where = ": there is none of " + strings.Join(files, ", ")
	case !strings.Contains(command, "/"):
		where = ": it is in no directory of PATH, " + list
	}
	return &Failure{Code: exitNotFound, Reason: command + ": not found in the container" + where}
}

// isTemporary reports whether another attempt may succeed despite this error.
func isTemporary(errno unix.Errno) bool {
	switch errno {
	case unix.ETXTBSY, unix.ENOMEM, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.EIO:
		return true
	}
	return false
}

func explainFile(file string, info os.FileInfo, errno unix.Errno) string {
	switch errno {
	case unix.EACCES:
		switch {
		case info.IsDir():
			return "is a directory"
		case info.Mode()&0o111 == 0:
			return fmt.Sprintf("is not executable (mode %04o)", info.Mode().Perm())
		}
	case unix.ENOENT, unix.ENOTDIR:
		if interpreter := interpreterOf(file); interpreter != "" {
			return fmt.Sprintf("its interpreter %s is not in the container", interpreter)
		}
	case unix.ENOEXEC:
		return explainFormat(file)
	case unix.ETXTBSY:
		return "is open for writing (text file busy)"
	case unix.E2BIG:
		return "its arguments and environment are too large"
	}
	return errno.Error()
}

func explainFormat(file string) string {
	if program, err := open(file); err == nil {
		defer program.Close()
		if machine := program.Machine.String(); program.Machine != native[runtime.GOARCH] {
			return fmt.Sprintf("is a program for another architecture (%s), not for this host's (%s)",
				strings.ToLower(strings.TrimPrefix(machine, "EM_")), runtime.GOARCH)
		}
	}
	return "is not a program for this host, nor a script that begins with #! (exec format error)"
}

// native maps the architectures that the driver is built for to their ELF machines.
var native = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "386": elf.EM_386,
	"riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH,
}

// maxInterpreter is the length of the longest interpreter path that is reported.
const maxInterpreter = 256

// interpreterOf returns the program that the kernel runs to execute the file, or "" if
// there is none.
func interpreterOf(file string) string {
	if program, err := open(file); err == nil {
		defer program.Close()
		for _, segment := range program.Progs {
			if segment.Type == elf.PT_INTERP {
				name, _ := io.ReadAll(io.LimitReader(segment.Open(), maxInterpreter))
				return string(bytes.TrimRight(name, "\x00"))
			}
		}
		return ""
	}
	script, err := openRegular(file)
	if err != nil {
		return ""
	}
	defer script.Close()
	head, _ := io.ReadAll(io.LimitReader(script, maxInterpreter))
	line, _, _ := strings.Cut(string(head), "\n")
	line, isScript := strings.CutPrefix(line, "#!")
	if words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' }); isScript && len(words) > 0 {
		return fmt.Sprintf("%q", words[0]) // quoted, because a carriage return at its end is a common mistake
	}
	return ""
}

// open opens an ELF program. The caller closes it.
func open(name string) (*program, error) {
	file, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	parsed, err := elf.NewFile(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &program{parsed, file}, nil
}

type program struct {
	*elf.File
	file *os.File
}

// Close closes the file. The embedded elf.File would not, as it did not open the file
// itself.
func (p *program) Close() error { return p.file.Close() }

func openRegular(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, errors.Join(err, fmt.Errorf("open %s: not a regular file", name))
	}
	return file, nil
}
