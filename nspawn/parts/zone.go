package parts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
)

// JoinZone makes the members of a zone find a machine by these lines (names.Hosts.Own), and
// the machine find them. A machine with another address joins again.
func (m *Maker) JoinZone(name, zone, lines string) error {
	return m.changeZone(zone, func(members []member) []member {
		joins := member{name, lines}
		if i := indexOf(members, name); i >= 0 {
			members[i] = joins // the order is that in which members have come
			return members
		}
		return append(members, joins)
	})
}

// makeZone makes a zone for a guest that systemd-nspawn connects: in a stage, nspawn cannot
// take the lock with which it makes and removes zones. The zone stays while it has members.
func (m *Maker) makeZone(ctx context.Context, name, zone string) error {
	if err := m.JoinZone(name, zone, ""); err != nil {
		return err
	}
	return m.networks.MakeZone(ctx, zone)
}

// hasMembers reports whether a zone has members. If in doubt, it has.
func (m *Maker) hasMembers(zone string) bool {
	_, err := os.Lstat(m.dirs.Zone(zone))
	return !errors.Is(err, os.ErrNotExist)
}

// leaveZone makes the members of a machine's zone forget it. The last one takes the zone
// with it, unless it still has a port.
func (m *Maker) leaveZone(_ context.Context, name string) error {
	zones, err := namesOf(filepath.Join(m.dirs.Zones(), "*"))
	if err != nil {
		return err
	}
	for _, zone := range zones {
		members, err := readMembers(m.dirs.Zone(zone))
		if err == nil && indexOf(members, name) >= 0 {
			err = m.changeZone(zone, func(members []member) []member {
				return slices.DeleteFunc(members, func(other member) bool { return other.machine == name })
			})
			err = errors.Join(err, m.networks.RemoveZones(m.hasMembers))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// member is a machine of a zone, and the lines by which others find it.
type member struct{ machine, lines string }

func indexOf(members []member, machine string) int {
	return slices.IndexFunc(members, func(other member) bool { return other.machine == machine })
}

// changeZone changes the members of a zone, and tells all of them.
func (m *Maker) changeZone(zone string, change func([]member) []member) error {
	err := filelock.While(m.dirs.Zones(), 0o700, func() error {
		members, err := readMembers(m.dirs.Zone(zone))
		if err != nil {
			return err
		}
		members = change(members)
		if err := writeMembers(m.dirs.Zone(zone), members); err != nil {
			return err
		}
		for i, told := range members {
			if err := m.tellOf(told.machine, slices.Delete(slices.Clone(members), i, i+1)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("names in zone %s: %w", zone, err)
	}
	return nil
}

// tellOf writes the other members of its zone into a machine's /etc/hosts. A machine that
// is being removed has none any more.
func (m *Maker) tellOf(name string, others []member) error {
	file, err := os.OpenFile(m.dirs.Named(name, machine.HostsFile), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	before, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	lines := make([]string, len(others))
	for i, other := range others {
		lines[i] = other.lines
	}
	if after := names.WithOthers(string(before), lines); after != string(before) {
		return names.Rewrite(file, after)
	}
	return nil
}

// readMembers reads the members of a zone: lines of a machine's name, a space, and a line
// by which others find it, which may be empty. There is no file of a zone without members.
func readMembers(path string) (members []member, err error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		name, line, _ := strings.Cut(line, " ")
		if i := indexOf(members, name); i >= 0 {
			members[i].lines += line
			continue
		}
		members = append(members, member{name, line})
	}
	return members, nil
}

// writeMembers replaces the file of a zone in one step: a reader without the lock, as one
// after a crash, finds the old text or the new.
func writeMembers(path string, members []member) error {
	var text strings.Builder
	for _, member := range members {
		for line := range strings.Lines(cmp.Or(member.lines, "\n")) {
			text.WriteString(member.machine + " " + line)
		}
	}
	if text.Len() == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	next := filepath.Join(filepath.Dir(path), ".next") // hidden from leaveZone
	if err := os.WriteFile(next, []byte(text.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
