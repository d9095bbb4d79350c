package parts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
)

// makeNetwork reserves the ports of the host, or prepares a given network namespace. The
// machine's links are created later, when its payload waits (nspawn.Manager.Connect).
func (m *Maker) makeNetwork(ctx context.Context, d *draft) error {
	if err := m.networks.Reserve(d.spec.Machine, d.spec.Network.Ports); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	d.names = d.spec.Names
	if d.spec.Mode == machine.Boot && d.spec.Network.Name != "" && d.programs.Version <= 252 {
		return fmt.Errorf("network: systemd-nspawn %d takes no name for the interface of a booted container: leave :%s out", d.programs.Version, d.spec.Network.Name)
	}
	if d.spec.Network.Kind == links.Zone && d.spec.Mode == machine.Boot {
		return m.makeZone(ctx, d.spec.Machine, d.spec.Network.Of)
	}
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

// prepareNamespace makes a network namespace usable for a machine with a user namespace
// that does not own it. Only the tasks of its allocation use the namespace.
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

func (m *Maker) removeNetwork(ctx context.Context, name string) error {
	return m.networks.Remove(ctx, name, m.hasMembers)
}

// makeNames writes the files for name resolution. They are files of the host, so they can
// change while the machine runs, and nothing in the machine decides where they are.
func (m *Maker) makeNames(_ context.Context, d *draft) error {
	for _, file := range d.names.Files() {
		path := m.dirs.Named(d.spec.Machine, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
		if err := os.WriteFile(path, []byte(file.Content), 0o644); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
		// Everybody in the machine must be able to read them, whatever the umask is.
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
	}
	return nil
}
