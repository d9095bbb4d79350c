package job

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
)

type mountOptions struct {
	Bind            map[string]string `codec:"bind"`
	BindReadOnly    map[string]string `codec:"bind_read_only"`
	Inaccessible    []string          `codec:"inaccessible"`
	Overlay         []string          `codec:"overlay"`
	OverlayReadOnly []string          `codec:"overlay_read_only"`
	ShmSize         int64             `codec:"shm_size"`
	Tmpfs           []string          `codec:"tmpfs"`
}

var mountSchema = schema.Options{
	"bind":              schema.StringMap("bind"),
	"bind_read_only":    schema.StringMap("bind_read_only"),
	"inaccessible":      schema.Attr("inaccessible", "list(string)"),
	"overlay":           schema.Attr("overlay", "list(string)"),
	"overlay_read_only": schema.Attr("overlay_read_only", "list(string)"),
	"shm_size":          schema.Attr("shm_size", "number"),
	"tmpfs":             schema.Attr("tmpfs", "list(string)"),
}

func (c TaskConfig) validateMounts() error {
	var found schema.Mistakes
	_, overlayErr := c.overlays()
	found.Add(validateBinds("bind", c.Bind), validateBinds("bind_read_only", c.BindReadOnly), overlayErr, c.validateTmpfs())
	found.Unless(c.ShmSize >= 0, "shm_size: %d is negative", c.ShmSize)
	for i, path := range c.Inaccessible {
		found.Add(schema.NotEmpty(schema.At("inaccessible", i), path), schema.Absolute(schema.At("inaccessible", i), path))
	}
	return found.Err()
}

func validateBinds(option string, binds map[string]string) error {
	var found schema.Mistakes
	for _, source := range slices.Sorted(maps.Keys(binds)) {
		at := fmt.Sprintf("%s[%q]", option, source)
		found.Add(schema.NotEmpty(at, source), schema.NotEmpty(at, binds[source]), schema.Absolute(at, binds[source]))
	}
	return found.Err()
}

func (c TaskConfig) applyMounts(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	spec.Root.Inaccessible, spec.Root.SharedMemory = c.Inaccessible, uint64(c.ShmSize)
	c.applyTmpfs(spec)
	binds, err := c.newBinds(in)
	found.Add(err)
	overlays, err := c.newOverlays(in)
	found.Add(err, distinct(binds, overlays))
	spec.Binds, spec.Overlays = binds, overlays
	c.addVolumesOfImage(in, spec)
	return found.Err()
}

// Directories returns the binds of the directories that Nomad gives to each task. Nomad
// writes to them as root at any time, and follows their paths whenever a log is rotated or
// an agent starts.
func Directories(task *drivers.TaskConfig) []machine.Bind {
	dirs := task.TaskDir()
	binds := []machine.Bind{
		{Source: dirs.SharedAllocDir, Destination: containerDir(task, "NOMAD_ALLOC_DIR", "/alloc"), Keep: machine.KeepEntries, NoSymfollow: true},
		{Source: dirs.LocalDir, Destination: containerDir(task, "NOMAD_TASK_DIR", "/local"), ChownFallback: true, NoSymfollow: true},
		{Source: dirs.SecretsDir, Destination: containerDir(task, "NOMAD_SECRETS_DIR", "/secrets"), ChownFallback: true, Keep: machine.KeepFromLinks},
	}
	for _, name := range allocdir.SharedAllocDirs {
		bind := machine.Bind{Source: filepath.Join(dirs.SharedAllocDir, name), Destination: filepath.Join(binds[0].Destination, name)}
		// The log directory also holds the FIFOs that Nomad reads (CVE-2026-6959).
		if name == allocdir.LogDirName {
			bind.ReadOnly, bind.Keep = true, machine.KeepAll
		}
		binds = append(binds, bind)
	}
	return binds
}

// Dispatched reports whether the task belongs to a dispatched job. Nomad writes the
// payload of the dispatch as root, through symbolic links, into a directory of the
// allocation, when other tasks of the allocation may already have run.
func Dispatched(task *drivers.TaskConfig) bool {
	return strings.Contains(task.JobID, structs.DispatchLaunchSuffix)
}

// newBinds returns the directories that Nomad gives to each task, its volumes, and the
// binds of the job.
func (c TaskConfig) newBinds(in Input) ([]machine.Bind, error) {
	binds := Directories(in.Task)
	var found schema.Mistakes
	for _, mount := range in.Task.Mounts {
		bind, err := volume(mount)
		found.Add(err)
		// A device plugin gives the same with each of its devices, as a library.
		if !slices.Contains(binds, bind) {
			binds = append(binds, bind)
		}
	}
	var wanted []hostBind
	for _, option := range []struct {
		name     string
		binds    map[string]string
		readOnly bool
	}{{"bind", c.Bind, false}, {"bind_read_only", c.BindReadOnly, true}} {
		for _, source := range slices.Sorted(maps.Keys(option.binds)) {
			wanted = append(wanted, hostBind{fmt.Sprintf("%s[%q]", option.name, source), source, option.binds[source], option.readOnly})
		}
	}
	for _, bind := range append(wanted, c.dockerBinds()...) {
		path, err := in.hostPath(bind.source)
		found.Add(schema.Prefixed(bind.option+": ", err))
		binds = append(binds, machine.Bind{Source: path, Destination: filepath.Clean(bind.destination), ReadOnly: bind.readOnly})
	}
	return binds, found.Err()
}

func containerDir(cfg *drivers.TaskConfig, variable, fallback string) string {
	if dir := cfg.Env[variable]; filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	return fallback
}

// volume returns the bind of a host or CSI volume. It needs no permission of ours, because
// the operator has configured it.
func volume(mount *drivers.MountConfig) (machine.Bind, error) {
	bind := machine.Bind{
		Source:      mount.HostPath,
		Destination: filepath.Join("/", mount.TaskPath),
		ReadOnly:    mount.Readonly,
	}
	if mode := mount.PropagationMode; mode != "" && mode != "private" {
		return bind, fmt.Errorf("volume_mount %s: propagation_mode %q is not supported, only private", mount.TaskPath, mode)
	}
	return bind, nil
}

// hostPath returns a path of the host, if the operator allows it. A relative path belongs
// to the task's own directory and cannot leave it.
func (in Input) hostPath(path string) (string, error) {
	switch {
	case filepath.IsAbs(path):
		path = filepath.Clean(path)
		return path, in.Policy.HostPath(path, func(dir string) bool { return paths.Within(filepath.Clean(dir), path) })
	case !filepath.IsLocal(path):
		return path, errors.New("leaves the task's directory")
	}
	return filepath.Join(in.Task.TaskDir().Dir, path), nil
}

// HostPaths returns the absolute paths of the host that the job names. Links in them are
// resolved later, so the caller asks Policy.HostPath again.
func (c TaskConfig) HostPaths() []string {
	paths := slices.Concat(slices.Collect(maps.Keys(c.Bind)), slices.Collect(maps.Keys(c.BindReadOnly)))
	for _, bind := range c.dockerBinds() {
		paths = append(paths, bind.source)
	}
	overlays, _ := c.overlays() // validated
	for _, overlay := range overlays {
		paths = append(append(paths, overlay.lower...), overlay.upper)
	}
	var absolute []string
	for _, path := range paths {
		if filepath.IsAbs(path) {
			absolute = append(absolute, filepath.Clean(path))
		}
	}
	return absolute
}

// distinct refuses two mounts at one place, because one of them would be hidden.
func distinct(binds []machine.Bind, overlays []machine.Overlay) error {
	var found schema.Mistakes
	seen := map[string]string{}
	add := func(source, destination string) {
		if other, ok := seen[destination]; ok {
			found.Refuse("bind: both %s and %s are bound to %s", other, source, destination)
		}
		seen[destination] = source
	}
	for _, bind := range binds {
		add(bind.Source, bind.Destination)
	}
	for _, overlay := range overlays {
		add("an overlay", overlay.Destination)
	}
	return found.Err()
}
