package parts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// maxCredential is systemd's own limit (CREDENTIAL_SIZE_MAX in creds-util.h).
const maxCredential = 1 << 20

// makeCredentials writes the machine's secrets into a directory that only root of the host
// can read. nspawn reads them there at each start, so later changes to the task's files
// have no effect.
func (m *Maker) makeCredentials(_ context.Context, d *draft) error {
	if len(d.spec.Credentials) == 0 {
		return nil
	}
	dir := m.dirs.Credentials(d.spec.Machine)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for credentials: %w", err)
	}
	for _, credential := range d.spec.Credentials {
		content := []byte(credential.Value)
		if credential.File != "" {
			var err error
			if content, err = readCredential(credential); err != nil {
				return fmt.Errorf("read credential %s from %s: %w", credential.Name, credential.File, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, credential.Name), content, 0o600); err != nil {
			return fmt.Errorf("write credential %s: %w", credential.Name, err)
		}
	}
	return nil
}

// readCredential reads a file of the task, which the task may have replaced by anything.
func readCredential(credential machine.Credential) ([]byte, error) {
	top, err := os.OpenRoot(credential.Dir)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	file, err := top.OpenFile(credential.File, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is not a regular file"))
	}
	content, err := io.ReadAll(io.LimitReader(file, maxCredential+1))
	if len(content) > maxCredential {
		return nil, fmt.Errorf("it is larger than %d bytes", maxCredential)
	}
	return content, err
}
