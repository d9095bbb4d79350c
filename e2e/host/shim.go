package host

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildShim builds the program that `make build` embeds into the plugin, below the
// directory work, and returns the flags with which go build embeds it. The usual place is
// not used, because a build at the same time would find it there. module is the directory
// with go.mod.
func BuildShim(ctx context.Context, work, module string) (flags []string, err error) {
	const source = "nspawn/enter/shim"
	program, overlay := filepath.Join(work, "shim"), filepath.Join(work, "overlay.json")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./"+source)
	build.Dir, build.Stderr = module, os.Stderr
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in any image
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("go build ./%s: %w", source, err)
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, source, "shim"): program}})
	if err != nil {
		return nil, err
	}
	return []string{"-tags", "shim", "-overlay", overlay}, os.WriteFile(overlay, text, 0o600)
}
