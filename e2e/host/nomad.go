package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// nomadVar names the environment variable with the path of an agent to test with,
// whatever its version.
const nomadVar = "NSPAWN_E2E_NOMAD"

// nomadVersion is the oldest version that the driver is tested with, and the version that
// e2e/nomad pins.
var nomadVersion = [...]int{1, 11, 3}

// NomadBinary returns the path of a Nomad agent: the one of nomadVar, or the one on
// PATH if it is new enough, otherwise one built from the module in e2e/nomad.
func NomadBinary(ctx context.Context) (string, error) {
	if path := os.Getenv(nomadVar); path != "" {
		out, err := exec.CommandContext(ctx, path, "version").Output()
		if err != nil {
			return "", fmt.Errorf("run the agent of %s: %w", nomadVar, err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		progress("testing with %s, %s", path, line)
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath("nomad"); err == nil && newEnough(ctx, path) {
		return filepath.Abs(path)
	}
	dir, err := nomadModule(ctx)
	if err != nil {
		return "", err
	}
	var recipe []byte
	for _, file := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", fmt.Errorf("read nomad's module: %w", err)
		}
		recipe = append(recipe, text...)
	}
	return cached(ctx, "bin", "nomad", string(recipe), func(ctx context.Context, path string) error {
		progress("building nomad %d.%d.%d from source (about 4 minutes the first time)…", nomadVersion[0], nomadVersion[1], nomadVersion[2])
		return run(ctx, "go", "build", "-C", dir, "-o", path, "github.com/hashicorp/nomad")
	})
}

func newEnough(ctx context.Context, path string) bool {
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return false
	}
	version, ok := parseNomadVersion(string(out))
	return ok && version[0] == nomadVersion[0] && slices.Compare(version[:], nomadVersion[:]) >= 0
}

// parseNomadVersion reads the first line of nomad version: "Nomad v1.11.3", possibly with
// a suffix. A pre-release does not count as its release.
func parseNomadVersion(out string) (version [3]int, ok bool) {
	line, _, _ := strings.Cut(out, "\n")
	n, err := fmt.Sscanf(line, "Nomad v%d.%d.%d", &version[0], &version[1], &version[2])
	return version, err == nil && n == 3 && !strings.Contains(line, "-")
}

// nomadModule finds the module beside this package's own sources.
func nomadModule(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "nomad-driver-nspawn")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the checkout, which must be the working directory or above it: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "e2e", "nomad"), nil
}
