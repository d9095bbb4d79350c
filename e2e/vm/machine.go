package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"time"
)

// bootPatience is many times the duration of a boot on a slow, busy machine.
const bootPatience = 5 * time.Minute

// runTests boots a virtual machine, which runs the tests and powers off. It may run for
// the time limit, if that is not 0.
func runTests(ctx context.Context, s system, w work, packages []testPackage, limit time.Duration) error {
	limit = cmp.Or(limit, bootPatience+time.Duration(len(packages))*(testTimeout+time.Minute))
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the tests have not ended within %s", limit))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)

	start := time.Now()
	cmd := command(ctx, "qemu-system-x86_64", arguments(s, w)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu: %w", err)
	}
	progress("booting with %s (half a minute when emulated)…", accelerator())
	impatient := time.AfterFunc(bootPatience, func() { giveUp(fmt.Errorf("not booted after %s%s", bootPatience, w.lastWords())) })
	defer impatient.Stop()
	total := result{}
	err = total.follow(output, os.Stdout, func() {
		impatient.Stop()
		progress("booted after %s", time.Since(start).Round(time.Second))
	})
	if err != nil {
		giveUp(err)
	}
	err = cmd.Wait()
	fmt.Println(total)
	switch {
	case context.Cause(ctx) != nil:
		return fmt.Errorf("the virtual machine was ended: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("run qemu: %w: %s", err, complaints.Bytes())
	case total.finished < len(packages):
		return fmt.Errorf("the virtual machine ended before the tests did%s", w.lastWords())
	}
	return total.verdict()
}

func accelerator() string {
	if name := os.Getenv("NSPAWN_VM_ACCEL"); name != "" {
		return name
	}
	return "tcg"
}

// arguments returns QEMU's arguments. The second disk contains the tests. Their output
// comes through a separate port, not through a terminal, to QEMU's stdout.
func arguments(s system, w work) []string {
	accel := accelerator()
	if accel == "tcg" {
		accel += ",thread=multi"
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", // a kernel that panics reboots: see panic= below
		"-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "2G",
		"-kernel", s.kernel(), "-initrd", s.initramfs(),
		// Without random.trust_cpu, services wait for entropy.
		"-append", "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on",
		"-drive", "if=virtio,format=raw,cache=unsafe,snapshot=on,file=" + s.disk(),
		"-drive", "if=virtio,format=raw,read-only=on,file=" + w.path("tests.ext4"),
		// -chardev stdio hangs up when stdin ends, and then the guest's writes block.
		"-chardev", "file,id=tests,path=/dev/stdout",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=tests,name=tests",
		"-chardev", "file,id=console,path=" + w.path("console"), "-serial", "chardev:console",
	}
}

// lastWords returns the end of the virtual machine's console output.
func (w work) lastWords() string {
	text, err := os.ReadFile(w.path("console"))
	if err != nil {
		return ""
	}
	return "; its console:\n" + string(bytes.TrimSpace(text[max(0, len(text)-3000):]))
}
