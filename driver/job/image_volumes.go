package job

import (
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/machine"
)

// addVolumesOfImage makes the VOLUMEs of an OCI image writable, each with what the image
// has there. They are private, count against the limit of the disk, and are discarded
// with the container, like the rest of a copy-on-write root. If that is read-only, each
// volume gets a layer of its own.
//
// A volume that lies in a mount of the job is the job's to provide.
func (c TaskConfig) addVolumesOfImage(in Input, spec *machine.Spec) {
	mounts := mountPoints(*spec)
	var own []string
	for _, volume := range in.Image.Config.Volumes { // a directory is before what is in it
		if isCovered(mounts, volume) {
			continue
		}
		spec.Root.Directories = append(spec.Root.Directories, volume)
		if c.ReadOnly && !isCovered(own, volume) {
			own = append(own, volume)
			spec.Overlays = append(spec.Overlays, machine.Overlay{
				Lower:       []machine.Layer{{Path: volume, InRoot: true}},
				Destination: volume,
			})
		}
	}
}

// isCovered reports whether path is one of the directories or in one.
func isCovered(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	})
}

// mountPoints returns where the job, Nomad and systemd-nspawn mount something.
func mountPoints(spec machine.Spec) []string {
	points := []string{"/dev", "/proc", "/run", "/sys", "/tmp"}
	for _, bind := range spec.Binds {
		points = append(points, bind.Destination)
	}
	for _, overlay := range spec.Overlays {
		points = append(points, overlay.Destination)
	}
	for _, mount := range spec.Root.Tmpfs {
		path, _, _ := strings.Cut(mount, ":")
		points = append(points, path)
	}
	return append(points, spec.Root.Inaccessible...)
}
