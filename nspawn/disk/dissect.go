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

// dissectTimeout limits the time of systemd-dissect, which may wait for devices that udev
// never announces. Normally it took 0.05 s, and with dm-verity on a busy emulated machine
// 20 s.
const dissectTimeout = time.Minute

// dissect mounts the image. If systemd-dissect is killed, it leaves nothing behind,
// because the kernel frees a loop device without users.
func (p mountPoint) dissect(ctx context.Context, image Image) error {
	tool, err := exec.LookPath("systemd-dissect")
	if err != nil {
		return fmt.Errorf("systemd-dissect is not installed: install the package systemd-container: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dissectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, arguments(image, p.tree())...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"} // nobody is asked for a password
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case image.Policy != "" && strings.Contains(output.String(), "unrecognized option"):
		return errors.New("this systemd-dissect does not support image policies; they need systemd 254")
	}
	return fmt.Errorf("systemd-dissect: %w", errors.Join(ctx.Err(), cmp.Or(lastLine(output.String()), err)))
}

// arguments returns the arguments of systemd-dissect, which mounts with nodev.
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
