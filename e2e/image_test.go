//go:build e2e

package e2e

import (
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

var imageTests = []test{
	{"OCI image of an archive", testOCIArchive},
}

// archive saves a busybox image as docker does, in a directory from which jobs may run
// images by path, and returns its path on the host.
func (l *lab) archive(config v1.Config) string {
	l.Helper()
	busybox, err := host.BusyboxImage(l.ctx)
	must.NoError(l, err)
	tree, err := exec.CommandContext(l.ctx, "tar", "-C", busybox, "-c", ".").Output()
	must.NoError(l, err)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tree)), nil })
	must.NoError(l, err)
	image, err := mutate.AppendLayers(empty.Image, layer)
	must.NoError(l, err)
	image, err = mutate.Config(image, config)
	must.NoError(l, err)
	tag, err := name.NewTag("example.org/team/app:1")
	must.NoError(l, err)
	const path = "/var/lib/machines/app.tar"
	must.NoError(l, tarball.WriteToFile(filepath.Join(l.agent.Host.Root(), path), tag, image))
	l.atEnd("rm", path)
	return path
}

func testOCIArchive(l *lab) {
	path := l.archive(v1.Config{
		Entrypoint: []string{"/bin/sh", "-c"},
		Cmd:        []string{"trap 'exit 5' QUIT; id -u; pwd; echo $COLOR $NOMAD_TASK_NAME; " + loop},
		Env:        []string{"COLOR=blue", "PATH=/bin"},
		User:       "1234:1234",
		WorkingDir: "/etc",
		StopSignal: "SIGQUIT",
	})
	al := l.ready(task{config: "network_veth = false\nimage = \"docker-archive:" + path + "\""})
	must.StrHasPrefix(l, "1234\n/etc\nblue main\n", l.waitLog(al, agent.Stdout, "ready\n"))
	must.Eq(l, "1234\n", l.exec(al, "id", "-u"))
	digest := l.imageOf(al)
	must.StrNotContains(l, l.onHost(agent.Plugin, "images", "prune"), digest)
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, 5, l.exitCode(now))
	must.StrContains(l, agent.Events(now), "Pulled image docker-archive:"+path)
	must.One(l, strings.Count(l.onHost(agent.Plugin, "images", "prune"), "removed "+digest))
	must.StrNotContains(l, l.onHost(agent.Plugin, "images"), digest)
	l.gone(al)
}

// imageOf returns the digest of the stored image that an allocation uses.
func (l *lab) imageOf(al *agent.Alloc) string {
	l.Helper()
	list := l.onHost(agent.Plugin, "images")
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); strings.Contains(line, machineOf(al)) {
			return fields[slices.IndexFunc(fields, func(field string) bool { return strings.HasPrefix(field, "sha256:") })]
		}
	}
	l.Fatalf("%s uses no image:\n%s", machineOf(al), list)
	return ""
}
