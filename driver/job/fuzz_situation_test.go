package job

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"path"
	"strings"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn/network/names"
)

// situation is what a task is started with.
type situation struct {
	policy policy
	cfg    *drivers.TaskConfig // as Nomad makes it of the job
	image  Image
	values map[string]value // of options
}

// newSituation takes the operator's policy and the kind of image of the first byte.
func newSituation(policies []policy, b *bytesOf) *situation {
	first := int(b.next())
	cfg := *exampleTask()
	s := &situation{policy: policies[first%len(policies)], cfg: &cfg, image: Image{Tree: "/var/lib/machines/debian"}, values: map[string]value{"image": "debian"}}
	if first&2 != 0 {
		s.image = Image{StoreDigest: "sha256:" + strings.Repeat("0", 64)}
		s.values["image"] = "alpine:3"
		s.image.Config.Cmd = []string{"/bin/sh"}
	} else if first&4 != 0 {
		s.values["command"] = []value{"/bin/true"}
	}
	for range min(b.below(4), len(b.data)) {
		around[b.below(len(around))](s, b)
	}
	return s
}

// around is what a job or an image decides beside the config.
var around = []func(s *situation, b *bytesOf){
	func(s *situation, b *bytesOf) {
		s.cfg.Name = strings.NewReplacer("/", "-", "\x00", "-").Replace(b.text(nil))
	}, // as Nomad checks it
	func(s *situation, b *bytesOf) { s.cfg.JobName, s.cfg.JobID = b.text(nil), b.text(nil) },
	func(s *situation, b *bytesOf) { s.cfg.TaskGroupName = b.text(nil) },
	func(s *situation, b *bytesOf) { s.cfg.User = b.text(fitting["user"]) },
	func(s *situation, b *bytesOf) {
		s.cfg.Env = maps.Clone(s.cfg.Env)
		s.cfg.Env[b.text([]string{"NOMAD_ALLOC_DIR", "NOMAD_TASK_DIR", "NOMAD_SECRETS_DIR", "A"})] = b.text(nil)
	},
	func(s *situation, b *bytesOf) {
		s.cfg.DNS = &drivers.DNSConfig{Servers: []string{b.text(nil)}, Searches: []string{b.text(nil)}, Options: []string{b.text(nil)}}
	},
	func(s *situation, b *bytesOf) {
		s.cfg.Mounts = []*drivers.MountConfig{{TaskPath: b.text(fitting["target"]), HostPath: "/opt/volume", Readonly: b.next()&1 == 1}}
	},
	func(s *situation, b *bytesOf) {
		s.cfg.NetworkIsolation = &drivers.NetworkIsolationSpec{Path: "/run/netns/x", HostsConfig: &drivers.HostsConfig{Hostname: b.text(fitting["hostname"])}}
	},
	func(s *situation, b *bytesOf) {
		s.cfg.Devices = []*drivers.DeviceConfig{{HostPath: "/dev/plugin0", TaskPath: b.text(fitting["container_path"]), Permissions: "rw"}}
	},
	func(s *situation, b *bytesOf) {
		memory, _ := b.number().(int64)
		s.cfg.Resources = &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{Memory: structs.AllocatedMemoryResources{MemoryMB: memory >> 21, MemoryMaxMB: int64(b.next()) - 2}},
			LinuxResources: &drivers.LinuxResources{CPUShares: int64(b.next()), CpusetCpus: b.text([]string{"0", "0-3"}), PercentTicks: 0.3},
			Ports:          s.cfg.Resources.Ports,
		}
	},
	func(s *situation, b *bytesOf) { s.image.Config.User = b.text(fitting["user"]) },
	func(s *situation, b *bytesOf) {
		s.image.Config.Env = []string{b.text(nil), b.text(fitting["environment"]) + "=" + b.text(nil)}
	},
	func(s *situation, b *bytesOf) { s.image.Config.WorkingDir = path.Join("/", b.text(nil)) },
	func(s *situation, b *bytesOf) { // as package oci reads them
		if volume := path.Join("/", b.text(fitting["target"])); volume != "/" {
			s.image.Config.Volumes = []string{volume}
		}
	},
	func(s *situation, b *bytesOf) {
		s.image.Config.Entrypoint, s.image.Config.Cmd = []string{b.text(nil)}, []string{b.text(fitting["command"])}
	},
}

// makeConfig gives options values for as long as there are bytes.
func (s *situation) makeConfig(b *bytesOf) []byte {
	shapes := taskShapes()
	for range 24 {
		if len(b.data) == 0 {
			break
		}
		option := shapes[b.below(len(shapes))]
		s.values[option.name] = option.make(b)
	}
	return s.config()
}

// config has all options, as Nomad sends them, in msgpack.
func (s *situation) config() []byte {
	all := taskShapes()
	raw := binary.BigEndian.AppendUint16(append(make([]byte, 0, 4096), 0xde), uint16(len(all)))
	for _, option := range all {
		raw = append(raw, option.encodedName...)
		if v, ok := s.values[option.name]; ok {
			raw = appendValue(raw, v)
		} else {
			raw = append(raw, option.encodedNormal...)
		}
	}
	return raw
}

func (s *situation) input() Input {
	return Input{
		Policy: s.policy.Policy, Task: s.cfg, Image: s.image,
		DNS:   names.Host{ResolvConf: "nameserver 127.0.0.53\nsearch example.net\n", Uplink: "nameserver 192.0.2.1\n"},
		Cores: 4, Controllers: []string{"cpu", "cpuset", "io", "memory", "pids"}, MaxFiles: 1 << 20,
		HostIP: func(address netip.Addr) (netip.Addr, error) { return address, nil },
	}
}
