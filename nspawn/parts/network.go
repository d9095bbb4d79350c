package parts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/network/links"
)

// makeNetwork reserves the ports of the host, or prepares a network namespace that is
// given. The links of a machine are made when its payload waits, see
// nspawn.Manager.Connect.
func (m *Maker) makeNetwork(_ context.Context, d *draft) error {
	if err := m.networks.Reserve(d.spec.Machine, d.spec.Network.Ports); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	d.names = d.spec.Names
	if d.spec.Network.Namespace == "" {
		return nil
	}
	c, err := prepareNamespace(d.spec.Network.Namespace)
	if err != nil {
		return fmt.Errorf("prepare network: %w", err)
	}
	d.names = d.names.Connected(c)
	return nil
}

// prepareNamespace makes a network namespace fit for a machine with a user namespace
// that does not own it. Nobody else uses it but the tasks of its allocation.
func prepareNamespace(path string) (links.Connection, error) {
	namespace, err := os.Open(path)
	if err != nil {
		return links.Connection{}, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer namespace.Close()
	if err := links.Settings(namespace); err != nil {
		return links.Connection{}, err
	}
	return links.ReadConnection(namespace)
}

func (m *Maker) removeNetwork(ctx context.Context, machine string) error {
	return m.networks.Remove(ctx, machine)
}

// makeNames writes the files by which the machine finds names. They are the host's, so
// that they can change while it runs, and nothing in it decides where they are.
func (m *Maker) makeNames(_ context.Context, d *draft) error {
	for _, file := range d.names.Files() {
		path := m.dirs.Named(d.spec.Machine, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
		if err := os.WriteFile(path, []byte(file.Content), 0o644); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
		// Whatever the umask is: everybody in the machine reads them.
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
	}
	return nil
}
