package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn"
)

// readHostDNS reads the host's files; a missing one is empty.
func readHostDNS() (hostDNS, error) {
	resolv, err := readOptional("/etc/resolv.conf")
	if err != nil {
		return hostDNS{}, err
	}
	uplink, err := readOptional("/run/systemd/resolve/resolv.conf")
	return hostDNS{ResolvConf: resolv, Uplink: uplink}, err
}

func readOptional(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// resolveBinds checks that each source exists, and that one of the task's own
// directory is still there when symbolic links are followed: the task itself
// may have made them (compare CVE-2026-14896 of Nomad's docker driver).
func resolveBinds(binds []nspawn.Bind, cfg *drivers.TaskConfig) error {
	alloc, err := filepath.EvalSymlinks(cfg.AllocDir)
	if err != nil {
		return fmt.Errorf("find the allocation's directory: %w", err)
	}
	private := filepath.Join(alloc, filepath.Base(cfg.TaskDir().Dir), allocdir.TaskPrivate)
	var errs []error
	for i, bind := range binds {
		source, err := filepath.EvalSymlinks(bind.Source)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("bind to %s: %w", bind.Destination, err))
		case within(filepath.Clean(cfg.AllocDir), bind.Source) && !within(bound(alloc, bind.Source, cfg), source):
			errs = append(errs, fmt.Errorf("bind to %s: %s is a symbolic link that leads out of the task's directory, to %s", bind.Destination, bind.Source, source))
		case within(filepath.Clean(cfg.AllocDir), bind.Source) && exposes(source, private):
			errs = append(errs, fmt.Errorf("bind to %s: %s shows Nomad's own files of the task, in private: bind a directory beside it", bind.Destination, bind.Source))
		}
		binds[i].Source = source
	}
	return errors.Join(errs...)
}

// exposes says whether a bind shows something of a directory.
func exposes(bind, dir string) bool { return within(dir, bind) || within(bind, dir) }

// bound is what a bind of the allocation must stay in: the task's directory, or,
// for what tasks share, just itself. Not the allocation's: its log directory is
// read by Nomad as root, which follows links that a task could make there.
func bound(alloc, source string, cfg *drivers.TaskConfig) string {
	if name := filepath.Base(cfg.TaskDir().Dir); within(cfg.TaskDir().Dir, source) {
		return filepath.Join(alloc, name)
	}
	relative, _ := filepath.Rel(cfg.AllocDir, source) // both are absolute
	return filepath.Join(alloc, relative)
}
