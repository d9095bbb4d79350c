package schema

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Mistakes collects everything that is wrong, so that it is reported at once.
type Mistakes []error

// Add adds errors. Each of them may be nil.
func (m *Mistakes) Add(errs ...error) { *m = append(*m, errs...) }

// Refuse adds an error.
func (m *Mistakes) Refuse(format string, values ...any) { m.Add(fmt.Errorf(format, values...)) }

// Unless adds an error if a condition does not hold.
func (m *Mistakes) Unless(holds bool, format string, values ...any) {
	if !holds {
		m.Refuse(format, values...)
	}
}

// Err returns all mistakes in one error, or nil if there is none.
func (m Mistakes) Err() error { return errors.Join(m...) }

// The checks take the name of an option, for the error, and its value. They accept an
// empty value if the option need not be set.

// NotEmpty requires a value.
func NotEmpty(at, value string) error {
	if value == "" {
		return fmt.Errorf("%s: must not be empty", at)
	}
	return nil
}

// Absolute requires an absolute path.
func Absolute(at, value string) error {
	if value != "" && !path.IsAbs(value) {
		return fmt.Errorf("%s: %q is not an absolute path", at, value)
	}
	return nil
}

// OneOf requires one of the values.
func OneOf(at, value string, values []string) error {
	if value != "" && !slices.Contains(values, value) {
		return fmt.Errorf("%s: %q is not one of %s", at, value, strings.Join(values, ", "))
	}
	return nil
}

// Matches requires a match of the pattern. want describes such a value in words.
func Matches(at, value string, pattern *regexp.Regexp, want string) error {
	if value != "" && !pattern.MatchString(value) {
		return fmt.Errorf("%s: %q is not %s", at, value, want)
	}
	return nil
}

// CheckDuration requires a positive duration.
func CheckDuration(at, value string) error {
	if d, err := time.ParseDuration(value); err != nil || d <= 0 {
		return fmt.Errorf("%s: %q is not a positive duration, as 5m", at, value)
	}
	return nil
}

// Duration converts a validated duration.
func Duration(text string) time.Duration {
	d, _ := time.ParseDuration(text)
	return d
}

// CheckSize requires a number of bytes. The example is for the error.
func CheckSize(at, value, example string) error {
	if n, err := humanize.ParseBytes(value); err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%s: %q is not a size, as %s", at, value, example)
	}
	return nil
}

// ZoneName and InterfaceName match what a zone and an interface of the host can be named
// (systemd-nspawn(1), IFNAMSIZ of Linux).
var (
	ZoneName      = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,12}$`)
	InterfaceName = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,14}$`)
)

// minDisk leaves room for the files that the driver itself writes before the start.
const minDisk = 1 << 20

// CheckDisk requires a size to which the root of a task can be limited.
func CheckDisk(at, value string) error {
	limit, err := humanize.ParseBytes(value)
	switch {
	case err != nil:
		return CheckSize(at, value, "2GB")
	case limit < minDisk:
		return fmt.Errorf("%s: %q is less than 1MiB", at, value)
	}
	return nil
}

// minPids is the smallest limit of processes with which a machine can start.
const minPids = 16

// CheckPids requires a limit of processes that is sufficient for a machine.
func CheckPids(at string, value int64) error {
	if value < minPids {
		return fmt.Errorf("%s: want %d or more", at, minPids)
	}
	return nil
}

// Bytes converts a validated size.
func Bytes(text string) uint64 {
	n, _ := humanize.ParseBytes(text)
	return n
}

// Prefixed puts text before an error, if there is one.
func Prefixed(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%w", prefix, err)
}

// At names an element of a list.
func At(option string, i int) string { return fmt.Sprintf("%s[%d]", option, i) }
