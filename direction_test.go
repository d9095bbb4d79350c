package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestDirection holds the packages to it: main, driver, nspawn, what is below it.
// Only driver knows Nomad, its HCL and its logs.
func TestDirection(t *testing.T) {
	for _, path := range dependencies(t, "./nspawn/...") {
		must.False(t, strings.HasPrefix(path, "github.com/hashicorp/"), must.Sprintf("nspawn/… imports %s", path))
		must.False(t, strings.HasPrefix(path, "nomad-driver-nspawn/") && !below(path, "nspawn"), must.Sprintf("nspawn/… imports %s", path))
	}
	for _, path := range dependencies(t, "./nspawn/systemd", "./nspawn/rootfs", "./nspawn/idmap", "./nspawn/quota", "./nspawn/mounts", "./nspawn/tree",
		"./nspawn/filelock", "./nspawn/network", "./nspawn/enter", "./nspawn/pidfd", "./nspawn/image/...") {
		must.NotEq(t, "nomad-driver-nspawn/nspawn", path)
	}
	for _, path := range dependencies(t, ".") {
		must.False(t, below(path, "e2e"), must.Sprintf("the plugin imports %s", path))
	}
}

func below(path, folder string) bool {
	return strings.HasPrefix(path+"/", "nomad-driver-nspawn/"+folder+"/")
}

func dependencies(t *testing.T, packages ...string) []string {
	out, err := exec.Command("go", append([]string{"list", "-deps"}, packages...)...).Output()
	must.NoError(t, err)
	return strings.Fields(string(out))
}
