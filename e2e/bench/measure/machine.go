package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// imageDir is in a directory that the driver allows by default, and on a file system
	// that can be ID-mapped.
	imageDir    = "/var/lib/machines/bench"
	payloadPath = "/usr/bin/payload"
)

// makeImage copies the busybox system and adds the payload. The image is also run
// read-only, so it adds the mount points of Nomad's directories, too.
func makeImage(ctx context.Context, opts options) error {
	for _, args := range [][]string{
		{"cp", "--archive", opts.image, imageDir},
		{"cp", opts.payload, imageDir + payloadPath},
	} {
		if output, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", args[len(args)-2], err, output)
		}
	}
	for _, dir := range []string{"alloc", "local", "secrets"} {
		if err := os.Mkdir(filepath.Join(imageDir, dir), 0o755); err != nil {
			return fmt.Errorf("make image: %w", err)
		}
	}
	return nil
}

// describeMachine returns what the figures depend on.
func describeMachine(ctx context.Context) (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("read kernel version: %w", err)
	}
	systemd, err := exec.CommandContext(ctx, "systemctl", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask for systemd version: %w", err)
	}
	first, _, _ := strings.Cut(string(systemd), "\n")
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("read processor: %w", err)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", fmt.Errorf("read load: %w", err)
	}
	minute, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%d x %s, load %s, kernel %s, %s", runtime.NumCPU(), processor(string(text)),
		minute, unix.ByteSliceToString(name.Release[:]), first), nil
}

// processor returns the model name, if there is one (there is none on ARM).
func processor(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
