package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/paths"
)

// readHostDNS reads the host's files; a missing one is empty.
func readHostDNS() (names.Host, error) {
	resolv, err := readOptional(names.HostFile)
	if err != nil {
		return names.Host{}, err
	}
	uplink, err := readOptional(names.UplinkFile)
	return names.Host{ResolvConf: resolv, Uplink: uplink}, err
}

func readOptional(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// resolvePaths follows the symbolic links of what the machine sees of the host.
// Each must exist, and one of the task's own directory still be there then: the
// task itself may have made them (compare CVE-2026-14896 of Nomad's docker driver).
// What the job names of the host must be where the operator allows it.
// When the machine is started, each is opened once, below the allocation's directory
// through no link any more: what is exchanged in between is refused.
func resolvePaths(policy operator.Policy, task job.TaskConfig, spec *machine.Spec, cfg *drivers.TaskConfig) error {
	alloc, err := filepath.EvalSymlinks(cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("find the allocation's directory: %w", err)
	}
	spec.Untrusted = alloc
	var errs []error
	named := task.HostPaths()
	resolve := func(kind, destination string, path *string) {
		found, err := resolvePath(alloc, *path, cfg)
		if err == nil && slices.Contains(named, *path) {
			err = policy.HostPath(*path, isBelow(found))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s to %s: %w", kind, destination, err))
		}
		*path = found
	}
	for i, bind := range spec.Binds {
		resolve("bind", bind.Destination, &spec.Binds[i].Source)
	}
	for i, overlay := range spec.Overlays {
		for j, layer := range overlay.Lower {
			if !layer.InRoot {
				resolve("overlay", overlay.Destination, &overlay.Lower[j].Path)
			}
		}
		if overlay.Upper != "" {
			resolve("overlay", overlay.Destination, &spec.Overlays[i].Upper)
		}
	}
	return errors.Join(errs...)
}

func resolvePath(alloc, path string, cfg *drivers.TaskConfig) (string, error) {
	found, err := filepath.EvalSymlinks(path)
	switch {
	case err != nil:
		return "", err
	case !paths.Within(filepath.Clean(cfg.AllocDir), path):
		return found, nil
	case !paths.Within(bound(alloc, path, cfg), found):
		return "", fmt.Errorf("%s is a symbolic link that leads out of the task's directory, to %s", path, found)
	case paths.Overlap(found, filepath.Join(alloc, filepath.Base(cfg.TaskDir().Dir), allocdir.TaskPrivate)):
		return "", fmt.Errorf("%s shows Nomad's own files of the task, in private: bind a directory beside it", path)
	}
	return found, nil
}

// bound is what a bind of the allocation must stay in: the task's directory, or,
// for what tasks share, just itself. Not the allocation's: its log directory is
// read by Nomad as root, which follows links that a task could make there.
func bound(alloc, source string, cfg *drivers.TaskConfig) string {
	if name := filepath.Base(cfg.TaskDir().Dir); paths.Within(cfg.TaskDir().Dir, source) {
		return filepath.Join(alloc, name)
	}
	relative, _ := filepath.Rel(cfg.AllocDir, source) // both are absolute
	return filepath.Join(alloc, relative)
}
