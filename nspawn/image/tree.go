package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// maxID is the highest UID in a machine.
const maxID = 65535

// CheckTree refuses a tree that this host cannot run, with advice: the owners of the
// files may have been changed by systemd-nspawn, or its programs may be for another
// architecture.
func CheckTree(dir string) error {
	var root unix.Stat_t
	if err := unix.Lstat(dir, &root); err != nil {
		return fmt.Errorf("inspect %s: %w", dir, err)
	}
	if root.Uid > maxID || root.Gid > maxID {
		return fmt.Errorf("the files of %s belong to UID %d and following, as systemd-nspawn -U leaves them: change them back with "+
			"`systemd-nspawn --private-users=0 --private-users-ownership=chown --directory=%s true`", dir, root.Uid, dir)
	}
	return checkArchitecture(dir)
}

// architectures lists the ELF machines that each GOARCH can run.
var architectures = map[string][]elf.Machine{
	"amd64":   {elf.EM_X86_64, elf.EM_386},
	"arm64":   {elf.EM_AARCH64, elf.EM_ARM},
	"riscv64": {elf.EM_RISCV},
	"ppc64le": {elf.EM_PPC64},
	"s390x":   {elf.EM_S390},
	"386":     {elf.EM_386},
	"arm":     {elf.EM_ARM},
}

// emulators are the names under which QEMU registers itself with binfmt_misc.
var emulators = map[elf.Machine]string{
	elf.EM_X86_64: "x86_64", elf.EM_386: "i386", elf.EM_AARCH64: "aarch64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64",
	elf.EM_PPC64: "ppc64le", elf.EM_S390: "s390x", elf.EM_LOONGARCH: "loongarch64", elf.EM_MIPS: "mipsel",
}

// programs lists programs; nearly every tree has one of them. An absolute symbolic link
// is not followed, because another program of the list is usually found.
var programs = []string{
	"usr/lib/systemd/systemd", "lib/systemd/systemd", "usr/sbin/init", "sbin/init",
	"usr/bin/dash", "usr/bin/bash", "bin/busybox", "usr/bin/busybox", "bin/sh", "usr/bin/sh", "usr/bin/env",
}

// checkArchitecture checks the first program that it finds. It accepts a tree without
// any; such a tree fails when it is started.
func checkArchitecture(dir string) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("inspect %s: %w", dir, err)
	}
	defer tree.Close()
	for _, program := range programs {
		machine, ok := machineOf(tree, program)
		if !ok {
			continue
		}
		if runsHere(machine) {
			return nil
		}
		return fmt.Errorf("/%s of %s is a program for %s, which this client (%s) does not run: use an image for %s, or install qemu-user-static on the client",
			program, dir, machine, runtime.GOARCH, runtime.GOARCH)
	}
	return nil
}

// machineOf returns the machine for which an ELF file was built. It does not block on a
// FIFO.
func machineOf(tree *os.Root, program string) (elf.Machine, bool) {
	file, err := tree.OpenFile(program, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	var head [20]byte // up to and including e_machine
	if _, err := io.ReadFull(file, head[:]); err != nil || !bytes.HasPrefix(head[:], []byte(elf.ELFMAG)) {
		return 0, false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	return elf.Machine(order.Uint16(head[18:])), true
}

func runsHere(machine elf.Machine) bool {
	known, ok := architectures[runtime.GOARCH]
	if !ok {
		return true // nothing is known about this architecture
	}
	for _, m := range known {
		if m == machine {
			return true
		}
	}
	emulator, ok := emulators[machine]
	if !ok {
		return false
	}
	text, err := os.ReadFile(filepath.Join(binfmtDir, "qemu-"+emulator))
	return err == nil && bytes.HasPrefix(text, []byte("enabled"))
}

// binfmtDir is where the kernel lists the interpreters of binary formats.
var binfmtDir = "/proc/sys/fs/binfmt_misc"
