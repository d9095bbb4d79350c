package image

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/download"
)

// program returns the beginning of a program for an architecture.
func program(machine elf.Machine, order binary.ByteOrder) string {
	head := make([]byte, 64)
	copy(head, elf.ELFMAG)
	head[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	if order == binary.BigEndian {
		head[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	order.PutUint16(head[18:], uint16(machine))
	return string(head)
}

func TestCheckTree(t *testing.T) {
	t.Cleanup(func() { binfmtDir = "/proc/sys/fs/binfmt_misc" })
	binfmtDir = t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(binfmtDir, "qemu-riscv64"), []byte("enabled\ninterpreter /usr/bin/qemu\n"), 0o644))
	must.NoError(t, os.WriteFile(filepath.Join(binfmtDir, "qemu-arm"), []byte("disabled\n"), 0o644))
	little, big := binary.LittleEndian, binary.BigEndian
	for name, c := range map[string]struct {
		files map[string]string
		links map[string]string
		fifo  string
		owner int
		want  string
	}{
		"native":            {files: map[string]string{"usr/bin/dash": program(elf.EM_X86_64, little)}},
		"32 bits":           {files: map[string]string{"bin/busybox": program(elf.EM_386, little)}},
		"no program":        {files: map[string]string{"etc/passwd": ""}},
		"a script":          {files: map[string]string{"sbin/init": "#!/bin/sh\n"}},
		"arm64":             {files: map[string]string{"usr/lib/systemd/systemd": program(elf.EM_AARCH64, little)}, want: "is a program for EM_AARCH64"},
		"s390x":             {files: map[string]string{"sbin/init": program(elf.EM_S390, big)}, want: "/sbin/init of "},
		"emulated":          {files: map[string]string{"bin/sh": program(elf.EM_RISCV, little)}},
		"emulator disabled": {files: map[string]string{"bin/sh": program(elf.EM_ARM, little)}, want: "EM_ARM"},
		"link": {
			files: map[string]string{"usr/bin/bash.real": program(elf.EM_AARCH64, little)},
			links: map[string]string{"usr/bin/bash": "bash.real"}, want: "EM_AARCH64",
		},
		"link to the host": {links: map[string]string{"sbin/init": "/bin/sh", "bin/sh": "../../../../../../../../bin/sh"}, files: map[string]string{"sbin/x": "", "bin/x": ""}},
		"FIFO":             {fifo: "init", files: map[string]string{"bin/busybox": program(elf.EM_AARCH64, little)}, want: "EM_AARCH64"},
		"shifted by -U":    {owner: 1234567168, want: "--private-users=0 --private-users-ownership=chown"},
		"of a user":        {owner: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for path, content := range c.files {
				must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
				must.NoError(t, os.WriteFile(filepath.Join(dir, path), []byte(content), 0o755))
			}
			for path, target := range c.links {
				must.NoError(t, os.Symlink(target, filepath.Join(dir, path)))
			}
			if c.fifo != "" {
				must.NoError(t, os.MkdirAll(filepath.Join(dir, "sbin"), 0o755))
				must.NoError(t, unix.Mkfifo(filepath.Join(dir, "sbin", c.fifo), 0o644))
			}
			if c.owner != 0 {
				must.NoError(t, os.Chown(dir, c.owner, c.owner))
			}
			err := CheckTree(dir)
			if c.want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, c.want)
			}
		})
	}
}

// TestPullForeignTarball pulls a tarball for another architecture, which it does not
// name, and one of a tree that systemd-nspawn -U has run.
func TestPullForeignTarball(t *testing.T) {
	l := newLab(t)
	arm := tarOf(t, map[string]string{"bin/busybox": program(elf.EM_AARCH64, binary.LittleEndian)})
	for range 2 { // neither when it is pulled nor when it exists already
		_, err := l.pull(t.Context(), Request{Source: localFile(t, arm, download.Tar)})
		must.ErrorContains(t, err, "is a program for EM_AARCH64")
		must.False(t, Temporary(err))
	}
}
