package machine

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Check returns an error if a text of the spec would mean more to systemd-nspawn or to
// systemd than the spec says. It is the last word, whatever has been checked before.
func (s Spec) Check() error {
	var errs []error
	for _, point := range s.MountPoints() {
		if err := checkMountPoint(point.Path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", point.Option, err))
		}
	}
	for _, mount := range s.Root.Tmpfs {
		if err := mount.Check(); err != nil {
			errs = append(errs, fmt.Errorf("tmpfs %s: %w", mount.Destination, err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		errs = append(errs, CheckSysctl(name, s.Sysctls[name]))
	}
	errs = append(errs, s.checkPayload()...)
	if !isLine(s.Description) {
		errs = append(errs, fmt.Errorf("description: %q is not one line of text", s.Description))
	}
	return errors.Join(append(errs, s.Limits.IO.check())...)
}

// checkPayload refuses what cannot be handed to the payload as it is: the instructions are
// JSON on their way, and then arguments of execve(2). The errors do not show values, which
// may be secrets.
func (s Spec) checkPayload() (errs []error) {
	for _, part := range []struct {
		option string
		texts  []string
	}{
		{"command", s.Command},
		{"environment", s.Instructions().Env},
		{"user", []string{s.User}},
		{"working_directory", []string{s.WorkingDirectory}},
	} {
		if slices.ContainsFunc(part.texts, func(text string) bool { return !utf8.ValidString(text) || strings.Contains(text, "\x00") }) {
			errs = append(errs, fmt.Errorf("%s: has a zero byte, or bytes that are not UTF-8", part.option))
		}
	}
	return errs
}

// MountPoint is a path in the machine at which something is mounted, and the option of the
// task that asks for it.
type MountPoint struct{ Option, Path string }

// MountPoints returns those that the spec asks for. systemd-nspawn has more.
func (s Spec) MountPoints() (points []MountPoint) {
	add := func(option, path string) { points = append(points, MountPoint{option, path}) }
	for _, bind := range s.Binds {
		add("bind", bind.Destination)
	}
	for _, overlay := range s.Overlays {
		add("overlay", overlay.Destination)
	}
	for _, memory := range s.Memories {
		add("tmpfs", memory.Destination)
	}
	for _, mount := range s.Root.Tmpfs {
		add("tmpfs", mount.Destination)
	}
	for _, path := range s.Root.Inaccessible {
		add("inaccessible", path)
	}
	for _, device := range s.Devices {
		add("devices", device.Destination)
	}
	return points
}

// checkMountPoint refuses the root, whose place the driver itself prepares before the start, and
// what cannot be an argument on D-Bus.
func checkMountPoint(name string) error {
	switch {
	case !path.IsAbs(name):
		return fmt.Errorf("%q is not an absolute path", name)
	case path.Clean(name) == "/":
		return errors.New("nothing can be mounted over the root itself")
	case !isLine(name):
		return fmt.Errorf("%q has characters that are not text", name)
	}
	return nil
}

func isLine(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// devicePath is a path that means the same when systemd writes it to the unit's file as it
// is, and reads it again after a daemon-reload. There a line feed begins a new setting, a
// space ends the path, and a percent sign begins a specifier (systemd 252 to 262).
var devicePath = regexp.MustCompile(`^/([A-Za-z0-9_.:,+@=~-]+(/[A-Za-z0-9_.:,+@=~-]+)*)?$`)

// CheckDevicePath returns an error unless the path can name a device in IOLimits.
func CheckDevicePath(name string) error {
	if !devicePath.MatchString(name) || path.Clean(name) != name {
		return fmt.Errorf("%q is not a plain absolute path: systemd takes letters, digits and _.:,+@=~- in it, and no empty parts or dots", name)
	}
	return nil
}

func (l IOLimits) check() error {
	var errs []error
	for _, devices := range []map[string]uint64{l.ReadBytes, l.WriteBytes, l.ReadOps, l.WriteOps} {
		for name := range devices {
			errs = append(errs, CheckDevicePath(name))
		}
	}
	return errors.Join(errs...)
}
