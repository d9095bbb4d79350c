package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

const (
	// unitPrefix starts the name of every unit of this driver.
	unitPrefix = "nomad-nspawn-"

	// maxName is the longest machine name that systemd takes
	// (HOST_NAME_MAX, hostname_is_valid in systemd's hostname-util.c).
	maxName = 64
)

var machineName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)

// Name is the name of the machine of a task: TASK-ALLOCATION, so that
// `nomad alloc status` and `machinectl list` show the same words. A task name
// that is not a valid host name label, or is too long, is shortened to what is
// valid of it and told apart by a hash.
//
// It is a pure function of the allocation and the task, not of the single
// start: whatever an earlier start of the task left is found by it.
func Name(allocID, task string) string {
	name := task + "-" + allocID
	if machineName.MatchString(name) && len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	suffix := "-" + hex.EncodeToString(sum[:4]) + "-" + validPart(allocID)
	label := validPart(task)
	label = strings.Trim(label[:min(len(label), max(maxName-len(suffix), 0))], "-")
	name = strings.TrimPrefix(label+suffix, "-")
	return strings.Trim(name[:min(len(name), maxName)], "-")
}

// validPart keeps what may stand in a host name label.
func validPart(s string) string {
	keep := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}
	return strings.Trim(strings.Map(keep, s), "-")
}

// UnitName is the transient service unit of a machine.
func UnitName(machine string) string { return unitPrefix + machine + ".service" }

// OfUnit is the reverse of UnitName; ok is false for other units.
func OfUnit(unit string) (machine string, ok bool) {
	machine, ok = strings.CutPrefix(unit, unitPrefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(machine, ".service")
}
