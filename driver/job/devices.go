package job

import (
	"cmp"
	"errors"
	"path"
	"path/filepath"
	"regexp"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn/machine"
)

type deviceOptions struct {
	Devices []Device `codec:"devices"`
}

// Device is a device of the client that a task sees, as docker has it.
type Device struct {
	HostPath          string `codec:"host_path"`
	ContainerPath     string `codec:"container_path"`
	CgroupPermissions string `codec:"cgroup_permissions"`
}

var deviceSchema = options{
	"devices": hclspec.NewBlockList("devices", hclspec.NewObject(options{
		"host_path":          requiredAttr("host_path", "string"),
		"container_path":     attr("container_path", "string"),
		"cgroup_permissions": withDefault("cgroup_permissions", "string", allAccess),
	})),
}

// allAccess is to read, to write, and to make nodes of a device.
const allAccess = "rwm"

var deviceAccess = regexp.MustCompile(`^[rwm]{1,3}$`)

func (c TaskConfig) validateDevices() error {
	var found mistakes
	for i, device := range c.Devices {
		option := at("devices", i)
		found.add(required(option+".host_path", device.HostPath), absolute(option+".host_path", device.HostPath),
			absolute(option+".container_path", device.ContainerPath),
			matches(option+".cgroup_permissions", device.CgroupPermissions, deviceAccess, "of r, w and m"))
	}
	return found.err()
}

// applyDevices gives the task the devices that the job names, if the operator allows
// them, and those of Nomad's device plugins, which the operator has configured.
func (c TaskConfig) applyDevices(in Input, spec *machine.Spec) error {
	var found mistakes
	seen := map[string]bool{}
	add := func(option, source, destination, access string) {
		device := machine.Device{Source: filepath.Clean(source), Destination: filepath.Clean(cmp.Or(destination, source)), Access: cmp.Or(access, allAccess)}
		found.unless(below("/dev", device.Source), "%s: %s is not below /dev", option, source)
		found.unless(!seen[device.Destination], "%s: %s is there already", option, device.Destination)
		seen[device.Destination] = true
		spec.Devices = append(spec.Devices, device)
	}
	for i, device := range c.Devices {
		add(at("devices", i), device.HostPath, device.ContainerPath, device.CgroupPermissions)
		found.add(prefixed(at("devices", i)+": ", in.Policy.Device(filepath.Clean(device.HostPath))))
	}
	for _, device := range in.Task.Devices {
		add("device", device.HostPath, device.TaskPath, device.Permissions)
	}
	return found.err()
}

func below(dir, name string) bool {
	rel, err := filepath.Rel(dir, name)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}

// checkPattern wants a pattern for matchesAny.
func checkPattern(at, pattern string) error {
	_, err := path.Match(pattern, "")
	return errors.Join(required(at, pattern), prefixed(at+": ", err))
}

// matchesAny reports whether one of the patterns of path.Match has the name.
func matchesAny(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if matched, err := path.Match(pattern, name); err == nil && matched {
			return true
		}
	}
	return false
}
