package job

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

func (c TaskConfig) validateTmpfs() error {
	var found schema.Mistakes
	for i, value := range c.Tmpfs {
		at, mount := schema.At("tmpfs", i), newTmpfs(value)
		found.Add(schema.NotEmpty(at, mount.Destination), schema.Absolute(at, mount.Destination), schema.Prefixed(at+": ", mount.Check()))
		if c.ownedInside(mount) {
			_, err := newMemory(mount)
			found.Add(schema.Prefixed(at+": ", err))
		}
	}
	return found.Err()
}

// applyTmpfs sets the file systems in memory. All of them are validated.
func (c TaskConfig) applyTmpfs(spec *machine.Spec) {
	for _, value := range slices.Concat(c.Tmpfs, c.dockerTmpfs()) {
		mount := newTmpfs(value)
		if c.ownedInside(mount) {
			memory, _ := newMemory(mount)
			spec.Memories = append(spec.Memories, memory)
			continue
		}
		spec.Root.Tmpfs = append(spec.Root.Tmpfs, mount)
	}
}

// newTmpfs reads PATH or PATH:OPTIONS. A file system in memory has the mode that it has
// with docker, unless an option says another.
func newTmpfs(value string) machine.Tmpfs {
	destination, list, _ := strings.Cut(value, ":")
	mount := machine.Tmpfs{Destination: destination}
	if path.IsAbs(destination) {
		mount.Destination = path.Clean(destination)
	}
	for option := range strings.SplitSeq(list, ",") {
		if option != "" {
			mount.Options = append(mount.Options, option)
		}
	}
	if !slices.ContainsFunc(mount.Options, func(option string) bool { return strings.HasPrefix(option, "mode=") }) {
		mount.Options = slices.Insert(mount.Options, 0, "mode=1777")
	}
	return mount
}

// ownedInside reports whether a file system in memory belongs to a user whose ID is that
// in the container. systemd-nspawn would take it for one of the host.
func (c TaskConfig) ownedInside(mount machine.Tmpfs) bool {
	return c.UserNamespacing && slices.ContainsFunc(mount.Options, func(option string) bool {
		return strings.HasPrefix(option, "uid=") || strings.HasPrefix(option, "gid=")
	})
}

// newMemory translates a file system in memory with an owner.
func newMemory(mount machine.Tmpfs) (machine.Memory, error) {
	memory := machine.Memory{Destination: mount.Destination, Options: map[string]string{}}
	for _, option := range mount.Options {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "uid", "gid":
			id, err := strconv.ParseUint(value, 10, 32)
			if err != nil || id > maxID {
				return memory, fmt.Errorf("%s=%s: want a number up to %d", name, value, maxID)
			}
			if name == "uid" {
				memory.UID = uint32(id)
			} else {
				memory.GID = uint32(id)
			}
		case "mode", "size", "nr_inodes":
			memory.Options[name] = value
		default:
			return memory, fmt.Errorf("%s: beside uid and gid there may be mode, size and nr_inodes", option)
		}
	}
	return memory, nil
}
