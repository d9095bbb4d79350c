package driver

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"nomad-driver-nspawn/nspawn"
)

// overlayOption is an element of `overlay` or `overlay_read_only`, taken apart.
type overlayOption struct {
	at          string // in the job's config
	lower       []string
	upper       string // "" is one of the machine's own
	readOnly    bool
	destination string
}

// overlayOptions reports every mistake at once.
func (c TaskConfig) overlayOptions() ([]overlayOption, error) {
	var options []overlayOption
	var errs []error
	for _, option := range []struct {
		name     string
		values   []string
		readOnly bool
	}{{"overlay", c.Overlay, false}, {"overlay_read_only", c.OverlayReadOnly, true}} {
		for i, value := range option.values {
			o := overlayOption{at: fmt.Sprintf("%s[%d]", option.name, i), readOnly: option.readOnly}
			err := o.parse(value)
			options, errs = append(options, o), append(errs, err)
		}
	}
	return options, errors.Join(errs...)
}

// parse takes LOWER[:LOWER…]:UPPER:DESTINATION, or without UPPER if read-only, of
// which --overlay= of systemd-nspawn(1) has the rules. Its short form without a
// destination is left out: it would write to the host's directory of that name.
func (o *overlayOption) parse(value string) error {
	paths, err := splitPaths(value)
	if err != nil {
		return fmt.Errorf("%s: %w", o.at, err)
	}
	if len(paths) < 3 {
		want := "LOWER:UPPER:DESTINATION, where UPPER may be empty"
		if o.readOnly {
			want = "LOWER:LOWER:DESTINATION"
		}
		return fmt.Errorf("%s: %q is not %s", o.at, value, want)
	}
	o.lower, o.destination = paths[:len(paths)-1], paths[len(paths)-1]
	if !o.readOnly {
		last := len(o.lower) - 1
		o.lower, o.upper = o.lower[:last], o.lower[last]
	}
	errs := []error{required(o.at, o.destination), absolute(o.at, o.destination)}
	for _, layer := range o.lower {
		errs = append(errs, required(o.at, layer))
		if name, ok := strings.CutPrefix(layer, "+"); ok {
			errs = append(errs, required(o.at, name), absolute(o.at, name))
		}
	}
	if strings.HasPrefix(o.upper, "+") {
		errs = append(errs, fmt.Errorf("%s: the upper layer %q cannot be of the image; an empty one is of the machine", o.at, o.upper))
	}
	return errors.Join(errs...)
}

// splitPaths splits at colons. A backslash takes the next character as it is.
func splitPaths(value string) ([]string, error) {
	paths := []string{""}
	escaped := false
	for _, char := range value {
		switch {
		case char == '\\' && !escaped:
			escaped = true
			continue
		case char == ':' && !escaped:
			paths = append(paths, "")
		default:
			paths[len(paths)-1] += string(char)
		}
		escaped = false
	}
	if escaped {
		return nil, fmt.Errorf(`%q ends with a backslash: write \\ for one`, value)
	}
	return paths, nil
}

// newOverlays finds the layers, where the operator allows them: paths are those
// of `bind`, with "+" of the image.
func newOverlays(policy Config, task TaskConfig, taskDir string) ([]nspawn.Overlay, error) {
	options, err := task.overlayOptions()
	if err != nil {
		return nil, err
	}
	var overlays []nspawn.Overlay
	var errs []error
	for _, o := range options {
		overlay := nspawn.Overlay{ReadOnly: o.readOnly, Destination: path.Clean(o.destination)}
		find := func(source string) string {
			found, err := hostPath(policy, taskDir, source)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", o.at, source, err))
			}
			return found
		}
		for _, layer := range o.lower {
			if name, ok := strings.CutPrefix(layer, "+"); ok {
				overlay.Lower = append(overlay.Lower, nspawn.Layer{Path: filepath.Clean(name), InRoot: true})
			} else {
				overlay.Lower = append(overlay.Lower, nspawn.Layer{Path: find(layer)})
			}
		}
		if o.upper != "" {
			overlay.Upper = find(o.upper)
		}
		overlays = append(overlays, overlay)
	}
	return overlays, errors.Join(errs...)
}
