package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// tool is what a machine is run with.
type tool struct {
	path    string // of systemd-nspawn
	version int    // systemd's major version
	shim    string // path of our own executable, see Spec.Shimmed
	// launcher is the program that enters a machine's mount namespace to start
	// nspawn, see package launch.
	launcher string
}

// lookTool finds the tool that is installed now: both it and we may be
// upgraded while machines run.
func (m *Manager) lookTool(ctx context.Context, s Spec) (tool, error) {
	path, err := lookNspawn()
	if err != nil {
		return tool{}, err
	}
	release, err := m.bus.Version(ctx)
	if err != nil {
		return tool{}, err
	}
	version, err := majorVersion(release)
	if err != nil {
		return tool{}, err
	}
	t := tool{path: path, version: version}
	if t.launcher, err = m.lookLauncher(); err != nil {
		return tool{}, err
	}
	if s.Shimmed() {
		t.shim, err = lookShim()
	}
	return t, err
}

// lookShim is our own executable, if it can be run in any image.
func lookShim() (string, error) {
	static, err := container.Static()
	if err != nil {
		return "", err
	}
	if !static {
		return "", errors.New("user: this nomad-driver-nspawn needs shared libraries and cannot be run in an image: build it with CGO_ENABLED=0 (make build)")
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	return path, nil
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
