package job

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

func TestDisk(t *testing.T) {
	for hcl, want := range map[string]machine.WritableLayer{
		``:                      {},
		`disk { size = "2GB" }`: {Max: 2_000_000_000},
		"disk {\n size = \"64 MiB\"\n in_memory = true\n}": {Max: 64 << 20, InMemory: true},
	} {
		task := parseTask(t, "image = \"debian\"\n"+hcl)
		spec, err := task.Spec(Input{Task: exampleTask(), Image: Image{Tree: "/var/lib/machines/debian"}})
		must.NoError(t, err)
		must.Eq(t, want, spec.Root.WritableLayer)
	}
	for size, want := range map[string]string{
		"": "is not a size", "-1GB": "is not a size", "1e30GB": "is not a size", "0": "is less than 1MiB", "1000kB": "is less than 1MiB",
	} {
		task := TaskConfig{rootOptions: rootOptions{Ephemeral: true, Disk: &Disk{Size: size}}}
		must.ErrorContains(t, task.validateRoot(), want)
	}
}
