package nspawn

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// tool is what a machine is run with.
type tool struct {
	path    string // of systemd-nspawn
	version int    // systemd's major version
	program string // starts nspawn, and is the shim that nspawn starts
}

// lookTool finds the tool that is installed now: both it and we may be
// upgraded while machines run.
func (m *Manager) lookTool(ctx context.Context) (tool, error) {
	path, err := lookNspawn()
	if err != nil {
		return tool{}, err
	}
	release, err := m.bus.KnownVersion(ctx)
	if err != nil {
		return tool{}, err
	}
	version, err := majorVersion(release)
	if err != nil {
		return tool{}, err
	}
	program, err := m.lookProgram()
	return tool{path: path, version: version, program: program}, err
}

func lookNspawn() (string, error) {
	path, err := exec.LookPath("systemd-nspawn")
	if err != nil {
		return "", fmt.Errorf("systemd-nspawn is not installed: install the package systemd-container: %w", err)
	}
	return path, nil
}

var leadingNumber = regexp.MustCompile(`^[^0-9]*([0-9]+)`)

func majorVersion(version string) (int, error) {
	match := leadingNumber.FindStringSubmatch(version)
	if match == nil {
		return 0, fmt.Errorf("parse systemd version %q: no number", version)
	}
	return strconv.Atoi(match[1])
}
