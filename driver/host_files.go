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

// readHostDNS reads the host's files for name resolution. A missing file counts as empty.
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

// resolvePaths resolves symbolic links in the host paths that the machine will see. Every
// path must exist. A path inside the task's directory must still be inside it after
// resolution, because the task itself may have created the link (compare CVE-2026-14896 of
// Nomad's docker driver). Other paths that the job names must be where the operator allows
// them.
//
// When the machine starts, each path is opened once. Below the allocation's directory, no
// symbolic link is followed then, so a file that is replaced in between is refused.
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

// bound returns the directory that a bind source inside the allocation must not leave: the
// task's directory or, for shared directories, the directory itself. It is never the whole
// allocation directory, because Nomad reads the log directory as root and follows links
// there.
func bound(alloc, source string, cfg *drivers.TaskConfig) string {
	if name := filepath.Base(cfg.TaskDir().Dir); paths.Within(cfg.TaskDir().Dir, source) {
		return filepath.Join(alloc, name)
	}
	relative, _ := filepath.Rel(cfg.AllocDir, source) // both are absolute
	return filepath.Join(alloc, relative)
}
