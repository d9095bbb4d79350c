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

	// maxName is the length of the longest machine name that systemd accepts
	// (HOST_NAME_MAX, hostname_is_valid in systemd's hostname-util.c).
	maxName = 64
)

var machineName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)

// Name returns the name of a task's machine: TASK-ALLOCATION, so that `nomad alloc
// status` and `machinectl list` show the same words. If the task name is not a valid host
// name label, or is too long, Name keeps its valid part and appends a hash to tell such
// names apart.
//
// Name is a pure function of the allocation and the task, not of one start. So the
// leftovers of an earlier start of the task are found by it.
func Name(allocID, task string) string {
	name := task + "-" + allocID
	if IsName(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	suffix := "-" + hex.EncodeToString(sum[:4]) + "-" + validPart(allocID)
	label := validPart(task)
	label = strings.Trim(label[:min(len(label), max(maxName-len(suffix), 0))], "-")
	name = strings.TrimPrefix(label+suffix, "-")
	return strings.Trim(name[:min(len(name), maxName)], "-")
}

// IsName reports whether Name returns such names. A link or a directory of the host may
// claim to be of a machine with any other name, which would be a path that leads anywhere.
func IsName(name string) bool { return len(name) <= maxName && machineName.MatchString(name) }

// validPart replaces or trims the characters that a host name label must not contain.
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

// UnitName returns the name of a machine's transient service unit.
func UnitName(machine string) string { return unitPrefix + machine + ".service" }

// OfUnit is the inverse of UnitName; ok is false for other units.
func OfUnit(unit string) (machine string, ok bool) {
	machine, ok = strings.CutPrefix(unit, unitPrefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(machine, ".service")
}
