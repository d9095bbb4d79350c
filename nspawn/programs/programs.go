// Package programs finds the programs that a machine is run with: systemd-nspawn, and a
// small one of the driver.
package programs

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Programs are the programs that a machine is run with.
type Programs struct {
	Nspawn  string // path of systemd-nspawn
	Version int    // systemd's major version
	Own     string // path of the driver's program, which starts nspawn, and which nspawn starts as the shim
}

// Find finds the programs that are installed now, because systemd and the driver may be
// upgraded while machines run. pins is the directory of package stage.
func Find(ctx context.Context, bus *systemd.Conn, pins string) (Programs, error) {
	nspawn, err := Nspawn()
	if err != nil {
		return Programs{}, err
	}
	release, err := bus.KnownVersion(ctx)
	if err != nil {
		return Programs{}, err
	}
	version, err := Major(release)
	if err != nil {
		return Programs{}, err
	}
	own, err := Own(pins)
	return Programs{Nspawn: nspawn, Version: version, Own: own}, err
}

// Nspawn returns the path of systemd-nspawn.
func Nspawn() (string, error) {
	path, err := exec.LookPath("systemd-nspawn")
	if err != nil {
		return "", fmt.Errorf("systemd-nspawn is not installed: install the package systemd-container: %w", err)
	}
	return path, nil
}

var leadingNumber = regexp.MustCompile(`^[^0-9]*([0-9]+)`)

// Major returns the major number of a version that systemd reports.
func Major(version string) (int, error) {
	match := leadingNumber.FindStringSubmatch(version)
	if match == nil {
		return 0, fmt.Errorf("parse systemd version %q: no number", version)
	}
	return strconv.Atoi(match[1])
}
