package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// churned are images that share layers.
var churned = []Image{
	imageOfLayers("0", "top0", "base0"),
	imageOfLayers("1", "top1", "base0"),
	imageOfLayers("2", "top2", "mid", "base0"),
	imageOfLayers("3", "top0", "mid", "base1"),
	imageOfLayers("4", "base1"),
}

// churn does what a plugin does in the life of a machine, and returns what is wrong.
func churn(ctx context.Context, s Store, machine string) error {
	image := churned[rand.IntN(len(churned))]
	if err := acquire(ctx, s, machine, image); err != nil {
		return err
	}
	options := CollectOptions{UnusedFor: 1, MaxBytes: int64(rand.IntN(2)), DryRun: rand.IntN(4) == 0}
	if _, err := s.Collect(ctx, options); err != nil {
		return err
	}
	for i, tree := range s.Trees(image) {
		if err := checkTree(tree, image.Layers[i]); err != nil {
			return fmt.Errorf("image in use: %w", err)
		}
	}
	if rand.IntN(2) == 0 {
		return nil // the next image takes its place
	}
	return s.Release(ctx, machine)
}

func acquire(ctx context.Context, s Store, machine string, image Image) error {
	found, _, err := s.Lookup(image.Digest)
	if err == nil {
		_, err = s.Acquire(ctx, machine, found.Digest)
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	p := s.Begin()
	defer p.Close()
	if err := add(ctx, p, image, image.Digest); err != nil {
		return err
	}
	_, err = s.Acquire(ctx, machine, image.Digest)
	if err != nil {
		return fmt.Errorf("just pulled: %w", err)
	}
	return nil
}

// checkStore returns states that must never occur, whatever processes work on the store.
func checkStore(ctx context.Context, s Store) error {
	return s.locked(ctx, func() error {
		inv, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		for it := range inv.items {
			if err := checkTree(s.payload(it), it.digest); err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(s.path(it), sizeFile)); err != nil {
				return err
			}
		}
		for _, r := range inv.images {
			if r.Err != nil {
				return fmt.Errorf("image %s: %w", r.Digest, r.Err)
			}
		}
		return nil
	})
}

// checkEmpties removes everything from the store.
func checkEmpties(t *testing.T, s Store, machines ...string) {
	t.Helper()
	for _, machine := range machines {
		must.NoError(t, s.Release(t.Context(), machine))
	}
	_, err := s.Collect(t.Context(), CollectOptions{UnusedFor: 1})
	must.NoError(t, err)
	for _, folder := range []string{"layers", "disks", "images", "names", "refs", "tmp"} {
		must.SliceEmpty(t, contents(t, s, folder), must.Sprint(folder))
	}
}

func TestChurn(t *testing.T) {
	s := newStore(t)
	var all sync.WaitGroup
	var machines []string
	for i := range 8 {
		machine := fmt.Sprint("machine-", i)
		machines = append(machines, machine)
		all.Go(func() {
			for range 40 {
				err := churn(t.Context(), s, machine)
				if err == nil {
					err = checkStore(t.Context(), s)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	checkEmpties(t, s, machines...)
}

// churnForever runs in a child process that will be killed.
func churnForever(s Store) {
	fmt.Println("started")
	for {
		if err := churn(context.Background(), s, os.Getenv(childMachine)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// TestKilledAnywhere kills processes at random points of their work, while others
// continue.
func TestKilledAnywhere(t *testing.T) {
	s := newStore(t)
	machines := []string{"a", "b", "c"}
	var running []child
	for _, machine := range machines {
		running = append(running, startChild(t, s, "churn", machine, nil))
	}
	for i := range 60 {
		victim := i % len(running)
		running[victim].says(t, "started")
		<-time.After(rand.N(20 * time.Millisecond)) // the point that it has reached is random
		running[victim].mustDie(t)
		must.NoError(t, checkStore(t.Context(), s))
		running[victim] = startChild(t, s, "churn", machines[victim], nil)
	}
	for _, c := range running {
		c.mustDie(t)
	}
	checkEmpties(t, s, machines...)
}

// mustDie kills a child, which must not have found anything wrong before.
func (c child) mustDie(t *testing.T) {
	t.Helper()
	_ = c.Process.Kill()
	must.ErrorContains(t, c.Wait(), "signal: killed")
}
