package programs

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/stage"
)

// Own returns the path of the small program that starts nspawn (package launch) and that
// nspawn starts as the shim (package gate). It is built into this program. Own installs it
// where it stays until the next boot of the host, because a guest may reboot after the
// plugin was upgraded. If none was built in, Own returns our own executable.
func Own(pins string) (string, error) {
	program := enter.Shim()
	if program == nil {
		return executable()
	}
	if err := stage.PrepareDir(pins); err != nil {
		return "", err
	}
	path := filepath.Join(pins, fileName())
	if err := install(path, program); err != nil {
		return "", fmt.Errorf("write the program that starts machines: %w", err)
	}
	return path, nil
}

// install writes a program to a path, unless there is one. Callers may do so at the same
// time: a program is complete when it gets its name, and keeps it. If it were replaced by
// another file, a caller that has looked it up before could no longer mount it.
func install(path string, program []byte) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	temporary := filepath.Join(filepath.Dir(path), ".launch-"+rand.Text())
	defer os.Remove(temporary)
	if err := Write(temporary, program); err != nil {
		return err
	}
	err := os.Link(temporary, path)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// Write makes a program that everybody may execute, at a path where nothing is.
//
// No process is started meanwhile: it would have our descriptor, with which it could write
// to the program, until it executes its own, and the kernel executes no program that
// somebody may write to (ETXTBSY).
func Write(path string, program []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = file.Write(program)
	if err == nil {
		err = file.Chmod(0o755) // the root of a container is another user
	}
	return errors.Join(err, file.Close())
}

// fileName tells the program from those of other versions of ours. It takes milliseconds.
var fileName = sync.OnceValue(func() string { return fmt.Sprintf("launch-%x", sha256.Sum256(enter.Shim())) })

// executable returns our own executable, which starts more slowly. It must be able to run
// in any image.
func executable() (string, error) {
	static, err := container.Static()
	if err != nil {
		return "", err
	}
	if !static {
		return "", errors.New("this nomad-driver-nspawn needs shared libraries and cannot be run in an image: build it with CGO_ENABLED=0 (make build)")
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	return path, nil
}
