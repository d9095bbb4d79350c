package parts

import (
	"path/filepath"
	"slices"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/launch"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

// HostOf returns the host's side of a machine whose UIDs begin at base: paths, programs
// and binds.
func HostOf(d dirs.Dirs, s machine.Spec, base uint32, p programs.Programs) machine.Host {
	start := launch.Launch{
		Program: p.Own, Keeper: stage.KeeperOf(d.Pin(s.Machine)), Namespace: "/" + filepath.Base(d.Pin(s.Machine)),
		Root: d.Root(s.Machine), Own: !s.Root.InPlace, Owner: base,
	}
	return machine.Host{
		Launcher:    start.Args(nil),
		UIDBase:     base,
		Nspawn:      p.Nspawn,
		Version:     p.Version,
		Shim:        d.Mounted(s.Machine, shimMount),
		Gate:        d.Mounted(s.Machine, gateMount),
		Root:        d.Root(s.Machine),
		Notify:      d.Notify(s.Machine),
		Credentials: d.Credentials(s.Machine),
		Binds: slices.Concat(
			nspawnBinds(shownBy(s), func(name string) string { return d.Mounted(s.Machine, name) }), deviceBinds(d, s), nameBinds(d, s),
		),
	}
}

// nameBinds returns the binds of the files for name resolution.
func nameBinds(d dirs.Dirs, s machine.Spec) (binds []machine.Bind) {
	for _, file := range s.Names.Files() {
		binds = append(binds, machine.Bind{
			Source: d.Mounted(s.Machine, filepath.Join(namesMount, filepath.Base(file.Path))), Destination: file.Path, ReadOnly: true,
		})
	}
	return binds
}
