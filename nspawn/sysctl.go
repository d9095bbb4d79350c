package nspawn

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/thread"
)

// setSysctls sets parameters of the kernel in the machine's own network and IPC
// namespaces. A file below /proc/sys shows the namespaces of the thread that opens it.
func (w Waiting) setSysctls(values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	network, err := w.openNamespace("net")
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	defer network.Close()
	ipc, err := w.openNamespace("ipc")
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	defer ipc.Close()
	return thread.Run(func() error {
		for _, namespace := range []*os.File{network, ipc} {
			if err := unix.Setns(int(namespace.Fd()), 0); err != nil {
				return fmt.Errorf("sysctl: join %s: %w", namespace.Name(), err)
			}
		}
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if err := setSysctl(name, values[name]); err != nil {
				errs = append(errs, fmt.Errorf("sysctl.%s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	})
}

func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	file, err := os.OpenFile(path, os.O_WRONLY, 0) // which makes no file
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("the kernel has no such parameter for a container")
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(value); err != nil {
		return fmt.Errorf("the kernel does not take %q: %w", value, err)
	}
	return nil
}

// openNamespace opens a namespace of the machine, as "net". It is the leader's, provided
// that the leader is still the same process afterwards.
func (w Waiting) openNamespace(kind string) (*os.File, error) {
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", w.Leader, kind))
	if err != nil {
		return nil, err
	}
	now, err := process.Process{PID: w.Leader}.Identity()
	if err == nil && now != w.identity {
		err = fmt.Errorf("leader %d of the machine has ended", w.Leader)
	}
	if err != nil {
		return nil, errors.Join(err, namespace.Close())
	}
	return namespace, nil
}
