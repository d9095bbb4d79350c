package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cacheVar names the environment variable that moves the cache, which holds
// the roots, images and binaries that take minutes to make, and the files of
// the hosts that are up.
const cacheVar = "NSPAWN_TEST_CACHE"

func cacheDir(sub string) (string, error) {
	base := os.Getenv(cacheVar)
	if base == "" {
		base = "/var/cache/nomad-driver-nspawn"
	}
	dir := filepath.Join(base, sub)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create cache: %w", err)
	}
	return dir, nil
}

// cached returns the path of sub/name-HASH, where HASH is the hash of recipe, and calls
// make if it does not exist. make gets a temporary path to create. Only a finished one is
// renamed to its place, and only one process at a time makes it.
func cached(ctx context.Context, sub, name, recipe string, make func(ctx context.Context, path string) error) (string, error) {
	dir, err := cacheDir(sub)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256([]byte(recipe))
	path := filepath.Join(dir, name+"-"+hex.EncodeToString(hash[:6]))
	if exists(path) {
		return path, nil
	}
	lockPath := filepath.Join(dir, "."+name+".lock")
	lock, err := lockFile(lockPath, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		progress("waiting for another process to make %s…", path)
		lock, err = lockFile(lockPath, unix.LOCK_EX)
	}
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if exists(path) { // made while waiting
		return path, nil
	}
	next := filepath.Join(dir, "."+name+".next")
	if err := removeTree(next); err != nil { // of a process that was killed
		return "", err
	}
	if err := make(ctx, next); err != nil {
		return "", errors.Join(fmt.Errorf("make %s: %w", name, err), removeTree(next))
	}
	return path, os.Rename(next, path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// run runs a tool, whose output is shown only when it fails.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("run %s: %w: %s", name, err, text[max(0, len(text)-2000):])
	}
	return nil
}

// Install installs the Debian packages of the files that are missing.
func Install(ctx context.Context, packageOf map[string]string) error {
	var missing []string
	for file, pkg := range packageOf {
		if !exists(file) {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	progress("installing %s with apt-get…", strings.Join(missing, ", "))
	if err := run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	args := append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends"}, missing...)
	return run(ctx, "env", args...)
}
