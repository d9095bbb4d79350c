package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tools are the programs that come from Debian packages.
var tools = map[string]string{
	"/usr/bin/qemu-system-x86_64": "qemu-system-x86",
	"/usr/sbin/mke2fs":            "e2fsprogs",
}

// need installs the packages of the files that are missing.
func need(ctx context.Context, packageOf map[string]string) error {
	var missing []string
	for file, pkg := range packageOf {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	progress("installing %s with apt-get…", strings.Join(missing, ", "))
	if err := run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	return run(ctx, "env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends"}, missing...)...)
}

// run runs a tool, whose output is shown only when it fails.
func run(ctx context.Context, name string, args ...string) error {
	out, err := command(ctx, name, args...).CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("run %s: %w: %s", name, err, text[max(0, len(text)-2000):])
	}
	return nil
}

// command returns a command that is killed when this process ends, and together with its
// children when ctx ends.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
