package job

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn/image"
)

// dockerOptions are options under the names that they have with docker, where ours
// are others.
type dockerOptions struct {
	ForcePull      bool     `codec:"force_pull"`
	Init           *bool    `codec:"init"`
	Mount          []Mount  `codec:"mount"`
	ReadonlyRootfs bool     `codec:"readonly_rootfs"`
	Volumes        []string `codec:"volumes"`
	WorkDir        string   `codec:"work_dir"`
}

// Mount is a bind or a file system in memory as docker has it.
type Mount struct {
	Type     string       `codec:"type"`
	Target   string       `codec:"target"`
	Source   string       `codec:"source"`
	ReadOnly bool         `codec:"readonly"`
	Tmpfs    TmpfsOptions `codec:"tmpfs_options"`
}

// TmpfsOptions are those of a Mount in memory.
type TmpfsOptions struct {
	Size int64 `codec:"size"` // bytes
	Mode int64 `codec:"mode"`
}

var dockerSchema = options{
	"force_pull": attr("force_pull", "bool"),
	"init":       attr("init", "bool"),
	"mount": hclspec.NewBlockList("mount", hclspec.NewObject(options{
		"type":     withDefault("type", "string", "bind"),
		"target":   requiredAttr("target", "string"),
		"source":   attr("source", "string"),
		"readonly": attr("readonly", "bool"),
		"tmpfs_options": block("tmpfs_options", options{
			"size": attr("size", "number"),
			"mode": attr("mode", "number"),
		}),
	})),
	"readonly_rootfs": attr("readonly_rootfs", "bool"),
	"volumes":         attr("volumes", "list(string)"),
	"work_dir":        attr("work_dir", "string"),
}

// Translate sets our options from those that docker has under other names.
func (c *TaskConfig) Translate() {
	c.WorkingDirectory = cmp.Or(c.WorkingDirectory, c.WorkDir)
	c.ReadOnly = c.ReadOnly || c.ReadonlyRootfs
	if c.ForcePull && c.PullPolicy == "" {
		c.PullPolicy = string(image.Always)
	}
	if c.ProcessTwo == nil {
		c.ProcessTwo = c.Init
	}
}

func (c TaskConfig) validateDocker() error {
	var found mistakes
	found.unless(c.WorkDir == "" || c.WorkDir == c.WorkingDirectory, "work_dir: %q differs from working_directory %q: set one of them", c.WorkDir, c.WorkingDirectory)
	found.unless(!c.ForcePull || c.PullPolicy == string(image.Always), "force_pull: true differs from pull_policy %q: set one of them", c.PullPolicy)
	found.unless(c.Init == nil || c.ProcessTwo == nil || *c.Init == *c.ProcessTwo, "init: differs from process_two: set one of them")
	for i, mount := range c.Mount {
		found.add(mount.validate(at("mount", i)))
	}
	for i := range c.Volumes {
		_, err := c.volume(i)
		found.add(err)
	}
	return found.err()
}

func (m Mount) validate(option string) error {
	var found mistakes
	found.add(absolute(option+".target", m.Target), required(option+".target", m.Target))
	switch m.Type {
	case "bind":
		found.add(required(option+".source", m.Source))
		found.unless(m.Tmpfs == TmpfsOptions{}, "%s.tmpfs_options: type is bind", option)
	case "tmpfs":
		found.unless(m.Source == "", "%s.source: type is tmpfs", option)
		found.unless(!m.ReadOnly, "%s.readonly: type is tmpfs", option)
		found.unless(m.Tmpfs.Size >= 0 && m.Tmpfs.Mode >= 0 && m.Tmpfs.Mode <= 0o7777, "%s.tmpfs_options: size or mode cannot be", option)
		found.unless(!strings.ContainsAny(m.Target, ":\\"), "%s.target: %q has a colon or a backslash", option, m.Target)
	case "volume":
		found.refuse("%s.type: docker's volumes are not there: use the volume block of the group and volume_mount", option)
	default:
		found.add(oneOf(option+".type", m.Type, []string{"bind", "tmpfs"}))
	}
	return found.err()
}

// hostBind is a path of the host that a job wants to see.
type hostBind struct {
	option, source, destination string
	readOnly                    bool
}

// volume reads SOURCE:DESTINATION[:ro|rw].
func (c TaskConfig) volume(i int) (hostBind, error) {
	option := at("volumes", i)
	parts := strings.Split(c.Volumes[i], ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return hostBind{}, fmt.Errorf("%s: %q is not SOURCE:DESTINATION or SOURCE:DESTINATION:ro; Nomad's volumes are mounted by volume_mount", option, c.Volumes[i])
	}
	bind := hostBind{option: option, source: parts[0], destination: parts[1]}
	if len(parts) == 3 {
		if !slices.Contains([]string{"ro", "rw"}, parts[2]) {
			return hostBind{}, fmt.Errorf("%s: %q is neither ro nor rw", option, parts[2])
		}
		bind.readOnly = parts[2] == "ro"
	}
	return bind, nil
}

// dockerBinds are the binds that are given as docker has them.
func (c TaskConfig) dockerBinds() (binds []hostBind) {
	for i := range c.Volumes {
		if bind, err := c.volume(i); err == nil {
			binds = append(binds, bind)
		}
	}
	for i, mount := range c.Mount {
		if mount.Type == "bind" {
			binds = append(binds, hostBind{option: at("mount", i), source: mount.Source, destination: mount.Target, readOnly: mount.ReadOnly})
		}
	}
	return binds
}

// dockerTmpfs are the file systems in memory that are given as docker has them.
func (c TaskConfig) dockerTmpfs() (list []string) {
	for _, mount := range c.Mount {
		if mount.Type != "tmpfs" {
			continue
		}
		var with []string
		if mount.Tmpfs.Size > 0 {
			with = append(with, fmt.Sprintf("size=%d", mount.Tmpfs.Size))
		}
		if mount.Tmpfs.Mode > 0 {
			with = append(with, fmt.Sprintf("mode=%04o", mount.Tmpfs.Mode))
		}
		list = append(list, strings.TrimSuffix(mount.Target+":"+strings.Join(with, ","), ":"))
	}
	return list
}
