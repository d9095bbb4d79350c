package job

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

const mebibyte = 1 << 20

// mistakes collects all that is wrong, so that it is reported at once.
type mistakes []error

func (m *mistakes) add(errs ...error) { *m = append(*m, errs...) }

func (m *mistakes) refuse(format string, values ...any) { m.add(fmt.Errorf(format, values...)) }

// unless refuses if a condition does not hold.
func (m *mistakes) unless(holds bool, format string, values ...any) {
	if !holds {
		m.refuse(format, values...)
	}
}

func (m mistakes) err() error { return errors.Join(m...) }

func required(at, value string) error {
	if value == "" {
		return fmt.Errorf("%s: must not be empty", at)
	}
	return nil
}

func absolute(at, value string) error {
	if value != "" && !path.IsAbs(value) {
		return fmt.Errorf("%s: %q is not an absolute path", at, value)
	}
	return nil
}

func oneOf(at, value string, values []string) error {
	if value != "" && !slices.Contains(values, value) {
		return fmt.Errorf("%s: %q is not one of %s", at, value, strings.Join(values, ", "))
	}
	return nil
}

func matches(at, value string, pattern *regexp.Regexp, want string) error {
	if value != "" && !pattern.MatchString(value) {
		return fmt.Errorf("%s: %q is not %s", at, value, want)
	}
	return nil
}

// positive wants a duration.
func positive(at, value string) error {
	if d, err := time.ParseDuration(value); err != nil || d <= 0 {
		return fmt.Errorf("%s: %q is not a positive duration, as 5m", at, value)
	}
	return nil
}

// duration converts a validated duration.
func duration(text string) time.Duration {
	d, _ := time.ParseDuration(text)
	return d
}

// size wants a number of bytes.
func size(at, value, example string) error {
	if n, err := humanize.ParseBytes(value); err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%s: %q is not a size, as %s", at, value, example)
	}
	return nil
}

// bytesOf converts a validated size.
func bytesOf(text string) uint64 {
	n, _ := humanize.ParseBytes(text)
	return n
}

func prefixed(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%w", prefix, err)
}

// at names an element of a list.
func at(option string, i int) string { return fmt.Sprintf("%s[%d]", option, i) }
