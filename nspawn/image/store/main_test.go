package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a mount namespace of their own. It also runs the children of
// startChild.
func TestMain(m *testing.M) {
	if act := children[os.Getenv(childAct)]; act != nil {
		act(Store{Dir: os.Getenv(childDir)})
		return
	}
	hosttest.RunPrivate(m, unix.CLONE_NEWNS)
}

func newStore(t *testing.T) Store {
	t.Helper()
	return Store{Dir: filepath.Join(t.TempDir(), "images")}
}

// digest returns a digest for a name.
func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "sha256:" + hex.EncodeToString(sum[:])
}

const filesOfTree = 20

// fillTree writes a tree in which every file contains the text.
func fillTree(text string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		for i := range filesOfTree {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

// checkTree returns what is missing of a tree that fillTree has written.
func checkTree(dir, text string) error {
	files, err := list(dir)
	if err != nil {
		return err
	}
	if len(files) != filesOfTree {
		return fmt.Errorf("%s has %d files", dir, len(files))
	}
	for _, file := range files {
		found, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if string(found) != text {
			return fmt.Errorf("%s/%s has %q", dir, file, found)
		}
	}
	return nil
}

// imageOfLayers returns an image whose name and layers are given by short names.
func imageOfLayers(name string, layers ...string) Image {
	image := Image{Digest: digest(name)}
	for _, layer := range layers {
		image.Layers = append(image.Layers, digest(layer))
	}
	return image
}

// add adds an image to the store. fillTree writes each layer, with its digest as the
// text.
func add(ctx context.Context, p *Pull, image Image, name string) error {
	for _, layer := range image.Layers {
		if _, err := p.Layer(ctx, layer, "here", fillTree(layer)); err != nil {
			return err
		}
	}
	return p.Add(ctx, image, name)
}

func mustPull(t *testing.T, s Store, image Image, name string) {
	t.Helper()
	p := s.Begin()
	defer p.Close()
	must.NoError(t, add(t.Context(), p, image, name))
}

func mustAcquire(t *testing.T, s Store, machine, digest string) {
	t.Helper()
	_, err := s.Acquire(t.Context(), machine, digest)
	must.NoError(t, err)
}

// contents lists a folder of the store.
func contents(t *testing.T, s Store, folder string) []string {
	t.Helper()
	names, err := list(filepath.Join(s.Dir, folder))
	must.NoError(t, err)
	return names
}
