package machine

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestSpecCheck(t *testing.T) {
	good := Spec{
		Description: "a task", Binds: []Bind{{Destination: "/a b:c"}}, Root: Root{Tmpfs: []Tmpfs{{Destination: `/\x`}}, Inaccessible: []string{"/é"}},
		Limits:  Limits{IO: IOLimits{ReadBytes: map[string]uint64{"/": 1, "/dev/disk/by-id/nvme-x_1:0": 1}}},
		Sysctls: map[string]string{"net.ipv4.tcp_rmem": "4096\t87380 6291456", "kernel.sem": "1 2 3 4", "fs.mqueue.msg_max": "9"},
	}
	must.NoError(t, good.Check())
	for name, bad := range map[string]Spec{
		"root":                {Binds: []Bind{{Destination: "/"}}},
		"root, disguised":     {Overlays: []Overlay{{Destination: "/a/.."}}},
		"empty":               {Memories: []Memory{{}}},
		"line feed":           {Root: Root{Inaccessible: []string{"/a\nb"}}},
		"NUL":                 {Root: Root{Tmpfs: []Tmpfs{{Destination: "/a\x00"}}}},
		"not UTF-8":           {Devices: []Device{{Destination: "/dev/\xff"}}},
		"NUL in a command":    {Command: []string{"a\x00b"}},
		"not UTF-8 in a user": {User: "\xff"},
		"NUL in a variable":   {Environment: map[string]string{"A": "\x00"}},
		"not UTF-8 in a dir":  {WorkingDirectory: "/\xed\xa0\x80"},
		"remount":             {Root: Root{Tmpfs: []Tmpfs{{Destination: "/a", Options: []string{"remount"}}}}},
		"setting in a text":   {Description: "a\nExecStartPre=/bin/evil"},
		"setting in a device": {Limits: Limits{IO: IOLimits{WriteOps: map[string]uint64{"/dev/a\nExecStartPre=/bin/evil\n#": 1}}}},
		"space in a device":   {Limits: Limits{IO: IOLimits{WriteBytes: map[string]uint64{"/dev/a b": 1}}}},
		"specifier":           {Limits: Limits{IO: IOLimits{ReadOps: map[string]uint64{"/dev/%n": 1}}}},
		"sysctl of the host":  {Sysctls: map[string]string{"kernel.modprobe": "/bin/evil"}},
		"sysctl, restored":    {Sysctls: map[string]string{"kernel.shm_next_id": "1"}},
		"path in a sysctl":    {Sysctls: map[string]string{"net./../kernel.modprobe": "/bin/evil"}},
		"slash in a sysctl":   {Sysctls: map[string]string{"net.core/somaxconn": "1"}},
		"empty part":          {Sysctls: map[string]string{"net..core": "1"}},
		"line in a sysctl":    {Sysctls: map[string]string{"net.core.somaxconn": "1\n2"}},
		"NUL in a sysctl":     {Sysctls: map[string]string{"net.core.somaxconn": "1\x00"}},
		"empty sysctl":        {Sysctls: map[string]string{"net.core.somaxconn": " "}},
		"long sysctl":         {Sysctls: map[string]string{"net.core.somaxconn": strings.Repeat("1", 257)}},
		"long name":           {Sysctls: map[string]string{"net." + strings.Repeat("a", 257): "1"}},
		"dots in a device":    {Limits: Limits{IO: IOLimits{ReadBytes: map[string]uint64{"/dev/../a": 1}}}},
	} {
		must.Error(t, bad.Check(), must.Sprint(name))
	}
}
