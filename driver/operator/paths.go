package operator

import (
	"fmt"
	"slices"
)

// Volumes reports whether paths of the host are allowed at all.
func (p Policy) Volumes() bool { return isOn(p.rules.Volumes) }

// HostPath checks a path of the host as the job names it, which must be below one of the
// operator's directories. below reports whether the path is in a directory.
func (p Policy) HostPath(name string, below func(dir string) bool) error {
	if !p.Volumes() {
		return refusal{
			what:   "paths of the host are not allowed",
			it:     "them",
			option: "volumes",
			or:     "the path be relative to the task's directory",
		}.unless(p.rules.Volumes)
	}
	return belowOne("volume_paths", p.rules.VolumePaths, name, below)
}

func belowOne(option string, dirs []string, name string, below func(dir string) bool) error {
	if slices.ContainsFunc(dirs, below) {
		return nil
	}
	return fmt.Errorf("%q is not below a directory that the operator allows with %s in the plugin's config (%s)", name, option, listed(dirs))
}
