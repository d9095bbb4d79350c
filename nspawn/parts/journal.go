package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const journalDir = "/var/log/journal"

// makeJournal links the journal of a booted machine into the host's journal, like
// `--link-journal=` of systemd-nspawn, which would write into the image by plain paths to
// do so. The link leads to the machine's files on the host.
func (m *Maker) makeJournal(_ context.Context, d *draft) error {
	mode, optional := strings.CutPrefix(d.spec.LinkJournal, "try-")
	if mode == "no" || mode == "" || d.spec.UUID == "" {
		return nil
	}
	err := m.linkJournal(d, mode)
	if optional || mode == "auto" {
		return nil // "try": without a journal on the host, there is no link
	}
	if err != nil {
		return fmt.Errorf("link_journal: %w", err)
	}
	return nil
}

func (m *Maker) linkJournal(d *draft, mode string) error {
	id := strings.ReplaceAll(d.spec.UUID, "-", "")
	inside := filepath.Join(journalDir, id)
	files := filepath.Join(m.dirs.WritableLayer(d.spec.Machine), "upper")
	switch {
	case d.spec.Root.InPlace && d.disk == "":
		files = d.image
	case d.spec.Root.WritableLayer.InMemory || d.disk != "":
		return errors.New("the machine's files are not in a directory of the host")
	}
	if _, err := os.Stat(journalDir); err != nil {
		return err
	}
	err := d.stage.Do(func() error {
		root, err := os.OpenRoot(m.dirs.Root(d.spec.Machine))
		if err != nil {
			return err
		}
		defer root.Close()
		if d.spec.Root.InPlace && d.spec.Root.UserNamespace {
			return root.MkdirAll(strings.TrimPrefix(inside, "/"), 0o755)
		}
		return makeDir(root, strings.TrimPrefix(inside, "/"), int(d.base))
	})
	if err != nil {
		return err
	}
	record := m.dirs.Journal(d.spec.Machine)
	target := filepath.Join(files, inside)
	if err := os.Symlink(target, record); err != nil {
		return err
	}
	return os.Symlink(target, inside)
}

// removeJournal removes the link if it is this machine's: the tasks of an allocation share
// the ID. Earlier versions of the driver had nspawn create links into the machine's
// directory.
func (m *Maker) removeJournal(_ context.Context, name string) error {
	links, err := filepath.Glob(filepath.Join(journalDir, "*"))
	if err != nil {
		return err
	}
	own, _ := os.Readlink(m.dirs.Journal(name))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		if target == own || below(m.dirs.Machine(name), target) {
			if err := ignoreNotExist(os.Remove(link)); err != nil {
				return fmt.Errorf("remove the link to the machine's journal: %w", err)
			}
		}
	}
	return nil
}
