package job

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/image"
)

// dockerOptions are options under docker's names, where ours have other names.
type dockerOptions struct {
	ForcePull      bool     `codec:"force_pull"`
	Init           *bool    `codec:"init"`
	Mount          []Mount  `codec:"mount"`
	ReadonlyRootfs bool     `codec:"readonly_rootfs"`
	Volumes        []string `codec:"volumes"`
	WorkDir        string   `codec:"work_dir"`
}

// Mount is a bind or a file system in memory, in docker's form.
type Mount struct {
	Type     string       `codec:"type"`
	Target   string       `codec:"target"`
	Source   string       `codec:"source"`
	ReadOnly bool         `codec:"readonly"`
	Tmpfs    TmpfsOptions `codec:"tmpfs_options"`
}

// TmpfsOptions are the options of a Mount in memory.
type TmpfsOptions struct {
	Size int64 `codec:"size"` // bytes
	Mode int64 `codec:"mode"`
}

var dockerSchema = schema.Options{
	"force_pull": schema.Attr("force_pull", "bool"),
	"init":       schema.Attr("init", "bool"),
	"mount": hclspec.NewBlockList("mount", hclspec.NewObject(schema.Options{
		"type":     schema.WithDefault("type", "string", "bind"),
		"target":   schema.RequiredAttr("target", "string"),
		"source":   schema.Attr("source", "string"),
		"readonly": schema.Attr("readonly", "bool"),
		"tmpfs_options": schema.Block("tmpfs_options", schema.Options{
			"size": schema.Attr("size", "number"),
			"mode": schema.Attr("mode", "number"),
		}),
	})),
	"readonly_rootfs": schema.Attr("readonly_rootfs", "bool"),
	"volumes":         schema.Attr("volumes", "list(string)"),
	"work_dir":        schema.Attr("work_dir", "string"),
}

// Translate sets our options from those with docker's names.
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
	var found schema.Mistakes
	found.Unless(c.WorkDir == "" || c.WorkDir == c.WorkingDirectory, "work_dir: %q differs from working_directory %q: set one of them", c.WorkDir, c.WorkingDirectory)
	found.Unless(!c.ForcePull || c.PullPolicy == string(image.Always), "force_pull: true differs from pull_policy %q: set one of them", c.PullPolicy)
	found.Unless(c.Init == nil || c.ProcessTwo == nil || *c.Init == *c.ProcessTwo, "init: differs from process_two: set one of them")
	for i, mount := range c.Mount {
		found.Add(mount.validate(schema.At("mount", i)))
	}
	for i := range c.Volumes {
		_, err := c.volume(i)
		found.Add(err)
	}
	return found.Err()
}

func (m Mount) validate(option string) error {
	var found schema.Mistakes
	found.Add(schema.Absolute(option+".target", m.Target), schema.NotEmpty(option+".target", m.Target))
	switch m.Type {
	case "bind":
		found.Add(schema.NotEmpty(option+".source", m.Source))
		found.Unless(m.Tmpfs == TmpfsOptions{}, "%s.tmpfs_options: type is bind", option)
	case "tmpfs":
		found.Unless(m.Source == "", "%s.source: type is tmpfs", option)
		found.Unless(!m.ReadOnly, "%s.readonly: type is tmpfs", option)
		found.Unless(m.Tmpfs.Size >= 0 && m.Tmpfs.Mode >= 0 && m.Tmpfs.Mode <= 0o7777, "%s.tmpfs_options: size or mode cannot be", option)
		found.Unless(!strings.ContainsAny(m.Target, ":\\"), "%s.target: %q has a colon or a backslash", option, m.Target)
	case "volume":
		found.Refuse("%s.type: docker's volumes are not there: use the volume block of the group and volume_mount", option)
	default:
		found.Add(schema.OneOf(option+".type", m.Type, []string{"bind", "tmpfs"}))
	}
	return found.Err()
}

// hostBind is a path of the host that a job binds.
type hostBind struct {
	option, source, destination string
	readOnly                    bool
}

// volume parses SOURCE:DESTINATION[:ro|rw].
func (c TaskConfig) volume(i int) (hostBind, error) {
	option := schema.At("volumes", i)
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

// dockerBinds returns the binds that are given in docker's form.
func (c TaskConfig) dockerBinds() (binds []hostBind) {
	for i := range c.Volumes {
		if bind, err := c.volume(i); err == nil {
			binds = append(binds, bind)
		}
	}
	for i, mount := range c.Mount {
		if mount.Type == "bind" {
			binds = append(binds, hostBind{option: schema.At("mount", i), source: mount.Source, destination: mount.Target, readOnly: mount.ReadOnly})
		}
	}
	return binds
}

// dockerTmpfs returns the file systems in memory that are given in docker's form.
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
