package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/klauspost/compress/zstd"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
)

// workshop is a place in which images are made with common tools.
type workshop struct {
	*testing.T
	dir string
}

func (w workshop) run(program, pkg string, args ...string) {
	w.Helper()
	tool := exec.Command(hosttest.Program(w, program, pkg), args...)
	tool.Dir = w.dir
	tool.Env = append(os.Environ(), "STORAGE_DRIVER=vfs", "BUILDAH_ISOLATION=chroot", "TMPDIR="+w.dir)
	out, err := tool.CombinedOutput()
	must.NoError(w, err, must.Sprintf("%s %s: %s", program, strings.Join(args, " "), out))
}

func (w workshop) skopeo(args ...string) {
	w.run("skopeo", "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

func (w workshop) buildah(args ...string) {
	w.run("buildah", "buildah", append([]string{"--root", w.dir + "/storage", "--runroot", w.dir + "/run"}, args...)...)
}

// tree makes a tree for an image, with a file capability, a setuid file, a link and an
// owner.
func (w workshop) tree() {
	dir := filepath.Join(w.dir, "tree")
	must.NoError(w, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	must.NoError(w, os.WriteFile(filepath.Join(dir, "bin/sh"), []byte(program(elf.EM_X86_64, binary.LittleEndian)), 0o755))
	must.NoError(w, os.WriteFile(filepath.Join(dir, "bin/ping"), []byte("ping"), 0o755))
	must.NoError(w, unix.Setxattr(filepath.Join(dir, "bin/ping"), "security.capability", netRaw, 0))
	must.NoError(w, os.WriteFile(filepath.Join(dir, "bin/su"), []byte("su"), 0o755))
	must.NoError(w, unix.Chmod(filepath.Join(dir, "bin/su"), 0o4755))
	must.NoError(w, os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o600))
	must.NoError(w, os.Chown(filepath.Join(dir, "mine"), 1000, 1001))
	must.NoError(w, os.Symlink("sh", filepath.Join(dir, "bin/ash")))
}

// netRaw is cap_net_raw=ep (VFS_CAP_REVISION_2, linux/capability.h).
var netRaw = append([]byte{1, 0, 0, 2, 0, 0x20, 0, 0}, make([]byte, 12)...)

// checkTree checks for the files that tree has made.
func (w workshop) checkTree(dirs []string) {
	w.Helper()
	find := func(name string) string {
		for _, dir := range dirs {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				return filepath.Join(dir, name)
			}
		}
		w.Fatalf("no %s in %v", name, dirs)
		return ""
	}
	var stat unix.Stat_t
	must.NoError(w, unix.Lstat(find("mine"), &stat))
	must.Eq(w, []uint32{1000, 1001, 0o600}, []uint32{stat.Uid, stat.Gid, stat.Mode & 0o7777})
	must.NoError(w, unix.Lstat(find("bin/su"), &stat))
	must.Eq(w, 0o4755, stat.Mode&0o7777)
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(find("bin/ping"), "security.capability", value)
	must.NoError(w, err)
	must.Eq(w, netRaw, value[:n])
	target, err := os.Readlink(find("bin/ash"))
	must.NoError(w, err)
	must.Eq(w, "sh", target)
}

func localReference(t *testing.T, name string) Source {
	reference, err := oci.ParseReference(name)
	must.NoError(t, err)
	return Source{Reference: reference}
}

// TestShapesOfTools uses an image of buildah, in each of the formats into which skopeo
// converts it, from files and from a registry, and an image of umoci.
func TestShapesOfTools(t *testing.T) {
	hosttest.RequireRoot(t)
	w := workshop{t, t.TempDir()}
	l := newLab(t)
	w.tree()
	w.buildah("from", "--name", "work", "scratch")
	w.run("tar", "tar", "--xattrs", "--xattrs-include=*", "-cf", "tree.tar", "-C", "tree", ".")
	w.buildah("add", "work", "tree.tar", "/")
	w.buildah("config", "--workingdir", "app", "--volume", "/data", "--entrypoint", `["/bin/sh"]`, "--cmd", "-c", "--user", "1000", "--stop-signal", "SIGQUIT", "--env", "A.b=c", "work")
	w.buildah("commit", "--format", "oci", "work", "oci:layout:1")
	layout := "oci:" + w.dir + "/layout:1"
	registry := func(name string) string { return "docker://" + l.address + "/" + name }
	for name, make := range map[string]func() Source{
		"OCI layout": func() Source { return localReference(t, layout) },
		"OCI archive": func() Source {
			w.skopeo("copy", layout, "oci-archive:oci.tar:app:1")
			return localReference(t, "oci-archive:"+w.dir+"/oci.tar")
		},
		"docker archive": func() Source {
			w.skopeo("copy", layout, "docker-archive:docker.tar:app:1")
			return localReference(t, "docker-archive:"+w.dir+"/docker.tar")
		},
		"buildah docker": func() Source {
			w.buildah("commit", "--format", "docker", "work", "docker-archive:buildah.tar:app:1")
			return localReference(t, "docker-archive:"+w.dir+"/buildah.tar")
		},
		"registry, OCI": func() Source {
			w.skopeo("copy", "--dest-tls-verify=false", layout, registry("oci:1"))
			return l.source(t, "oci:1")
		},
		"registry, v2s2": func() Source {
			w.skopeo("copy", "--format", "v2s2", "--dest-tls-verify=false", layout, registry("v2s2:1"))
			return l.source(t, "v2s2:1")
		},
		"registry, zstd": func() Source {
			w.skopeo("copy", "--format", "oci", "--dest-compress-format", "zstd", "--dest-tls-verify=false", layout, registry("zstd:1"))
			return l.source(t, "zstd:1")
		},
		"registry, zstd:chunked": func() Source {
			w.skopeo("copy", "--format", "oci", "--dest-compress-format", "zstd:chunked", "--dest-tls-verify=false", layout, registry("chunked:1"))
			return l.source(t, "chunked:1")
		},
		"umoci": func() Source {
			w.run("cp", "coreutils", "-r", "layout", "umoci")
			w.run("umoci", "umoci", "insert", "--image", "umoci:1", "tree", "/")
			w.run("umoci", "umoci", "config", "--image", "umoci:1", "--config.workingdir", "app")
			return localReference(t, "oci:"+w.dir+"/umoci:1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := l.pull(t.Context(), Request{Source: make()})
			must.NoError(t, err)
			workshop{t, w.dir}.checkTree(l.puller.Store.Trees(image))
			config, err := Config(image)
			must.NoError(t, err)
			must.Eq(t, oci.Config{
				Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c"}, Env: config.Env,
				User: "1000", WorkingDir: "/app", StopSignal: "SIGQUIT", Volumes: []string{"/data"},
			}, config)
			must.SliceContains(t, config.Env, "A.b=c")
		})
	}
	w.skopeo("copy", "--format", "v2s1", "--dest-tls-verify=false", "docker-archive:docker.tar", registry("v2s1:1"))
	_, err := l.pull(t.Context(), Request{Source: l.source(t, "v2s1:1")})
	must.ErrorContains(t, err, "schema version 1 is not supported")
	must.False(t, Temporary(err))
}

// TestShapesOfTarballs uses trees that were packed by tar, tools like bsdtar, and
// mmdebstrap.
func TestShapesOfTarballs(t *testing.T) {
	hosttest.RequireRoot(t)
	w := workshop{t, t.TempDir()}
	l := newLab(t)
	w.tree()
	for _, args := range [][]string{
		{"--xattrs", "--xattrs-include=*", "-c"},
		{"--xattrs", "--xattrs-include=*", "--format=posix", "--sparse", "-c"},
		{"--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "--mtime=@0", "-c", "--xz"},
		{"--xattrs", "--xattrs-include=*", "-c", "--zstd"},
	} {
		w.run("tar", "tar", append(args, "-f", "image.tar", "-C", "tree", ".")...)
		image, err := l.pull(t.Context(), Request{Source: Source{
			Download: download.Request{URL: w.dir + "/image.tar", Verify: download.VerifyNo}, Version: fmt.Sprint(args),
		}})
		must.NoError(t, err)
		w.checkTree(l.puller.Store.Trees(image))
	}
	// A tree that systemd-nspawn -U has run, with other owners.
	must.NoError(t, os.Chown(w.dir+"/tree/mine", 524288+1000, 524288+1001))
	w.run("tar", "tar", "-cf", "shifted.tar", "-C", "tree", ".")
	_, err := l.pull(t.Context(), Request{Source: Source{Download: download.Request{URL: w.dir + "/shifted.tar", Verify: download.VerifyNo}}})
	must.ErrorContains(t, err, "owner 525288:525289 is not in the range of a machine, 0 to 65535 (what systemd-nspawn -U has run")
}

// TestManyLayers uses the maximum number of layers of docker.
func TestManyLayers(t *testing.T) {
	l := newLab(t)
	var layers []v1.Layer
	for i := range 127 {
		layers = append(layers, layerOfTar(t, tarOf(t, map[string]string{fmt.Sprint(i): ""})))
	}
	built, err := mutate.AppendLayers(empty.Image, layers...)
	must.NoError(t, err)
	image, err := l.pull(t.Context(), Request{Source: l.upload(t, "many:1", built)})
	must.NoError(t, err)
	must.SliceLen(t, 127, image.Layers)
}

// TestChunkedZstd uses a layer with a frame for each file, and a table of contents in a
// skipped frame, as zstd:chunked of containers/storage and estargz's zstd write it.
func TestChunkedZstd(t *testing.T) {
	l := newLab(t)
	var plain bytes.Buffer
	archive := tar.NewWriter(&plain)
	var packed bytes.Buffer
	flush := func() {
		encoder, err := zstd.NewWriter(&packed)
		must.NoError(t, err)
		_, err = encoder.Write(plain.Bytes())
		must.NoError(t, err)
		must.NoError(t, encoder.Close())
		plain.Reset()
	}
	for i := range 20 {
		must.NoError(t, archive.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o644, Size: 1000}))
		_, err := archive.Write(bytes.Repeat([]byte{byte(i)}, 1000))
		must.NoError(t, err)
		must.NoError(t, archive.Flush())
		flush()
	}
	must.NoError(t, archive.Close())
	flush()
	for range 2 { // the table and the footer
		packed.Write([]byte{0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0})
		packed.Write(bytes.Repeat([]byte("x"), 64))
	}
	image, err := l.pull(t.Context(), Request{Source: localFile(t, packed.Bytes(), download.Tar)})
	must.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(l.puller.Store.Trees(image)[0], "19"))
	must.NoError(t, err)
	must.Eq(t, bytes.Repeat([]byte{19}, 1000), text)
}
