package job

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// overlay is a parsed element of `overlay` or `overlay_read_only`.
type overlay struct {
	at          string // its place in the job's config, for errors
	lower       []string
	upper       string // "" is a directory of the machine's own
	readOnly    bool
	destination string
}

// overlays parses the options. It returns every mistake at once.
func (c TaskConfig) overlays() ([]overlay, error) {
	var overlays []overlay
	var found schema.Mistakes
	for _, option := range []struct {
		name     string
		values   []string
		readOnly bool
	}{{"overlay", c.Overlay, false}, {"overlay_read_only", c.OverlayReadOnly, true}} {
		for i, value := range option.values {
			o := overlay{at: schema.At(option.name, i), readOnly: option.readOnly}
			found.Add(o.parse(value))
			overlays = append(overlays, o)
		}
	}
	return overlays, found.Err()
}

// parse parses LOWER[:LOWER…]:UPPER:DESTINATION, or the same without UPPER if read-only,
// by the rules of --overlay= (systemd-nspawn(1)). The short form without a destination is
// refused, because it would write to the host's directory of that name.
func (o *overlay) parse(value string) error {
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
	var found schema.Mistakes
	found.Add(schema.NotEmpty(o.at, o.destination), schema.Absolute(o.at, o.destination))
	for _, layer := range o.lower {
		found.Add(schema.NotEmpty(o.at, layer))
		if name, ok := strings.CutPrefix(layer, "+"); ok {
			found.Add(schema.NotEmpty(o.at, name), schema.Absolute(o.at, name))
		}
	}
	found.Unless(!strings.HasPrefix(o.upper, "+"), "%s: the upper layer %q cannot be of the image; an empty one is of the machine", o.at, o.upper)
	return found.Err()
}

// splitPaths splits at colons. A backslash escapes the next character.
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

// newOverlays returns the overlays with their layers, if the operator allows them. Paths
// are as in `bind`; with "+" they are paths of the image.
func (c TaskConfig) newOverlays(in Input) ([]machine.Overlay, error) {
	options, err := c.overlays()
	if err != nil {
		return nil, err
	}
	var overlays []machine.Overlay
	var found schema.Mistakes
	for _, o := range options {
		overlay := machine.Overlay{ReadOnly: o.readOnly, Destination: path.Clean(o.destination)}
		hostPath := func(source string) string {
			path, err := in.hostPath(source)
			found.Add(schema.Prefixed(fmt.Sprintf("%s: %s: ", o.at, source), err))
			return path
		}
		for _, layer := range o.lower {
			if name, ok := strings.CutPrefix(layer, "+"); ok {
				overlay.Lower = append(overlay.Lower, machine.Layer{Path: filepath.Clean(name), InRoot: true})
			} else {
				overlay.Lower = append(overlay.Lower, machine.Layer{Path: hostPath(layer)})
			}
		}
		if o.upper != "" {
			overlay.Upper = hostPath(o.upper)
		}
		overlays = append(overlays, overlay)
	}
	return overlays, found.Err()
}
