package disk

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// dissectTimeout bounds systemd-dissect, which waits for devices that udev does
// not announce. It took 0.05 s, and with dm-verity on a busy emulated machine 20 s.
const dissectTimeout = time.Minute

// dissect mounts the image. Killed on the way, systemd-dissect leaves nothing:
// the kernel frees a loop device that nothing holds.
func (p place) dissect(ctx context.Context, image Image) error {
	tool, err := exec.LookPath("systemd-dissect")
	if err != nil {
		return fmt.Errorf("systemd-dissect is not installed: install the package systemd-container: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dissectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, arguments(image, p.tree())...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"} // nobody is asked for a password either
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case image.Policy != "" && strings.Contains(said.String(), "unrecognized option"):
		return errors.New("this systemd-dissect knows no image policies: systemd 254 is needed")
	}
	return fmt.Errorf("systemd-dissect: %w", errors.Join(ctx.Err(), cmp.Or(lastLine(said.String()), err)))
}

// arguments are those of systemd-dissect, which mounts dir with nodev.
func arguments(image Image, dir string) []string {
	args := []string{"--mount"}
	if !image.Writable {
		args = append(args, "--read-only")
	}
	if image.Policy != "" {
		args = append(args, "--image-policy="+image.Policy)
	}
	return append(args, "--", image.Path, dir)
}

func lastLine(text string) error {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return errors.New(last)
	}
	return nil
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:6])
}
