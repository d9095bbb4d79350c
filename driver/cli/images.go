// Package cli contains the commands of the plugin's binary that operators call.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/image/store"
)

const imagesUsage = `usage: nomad-driver-nspawn images                    list the images of this client's store
       nomad-driver-nspawn images prune [--dry-run]  remove those that no task uses`

// Images lists the images of the store, or removes those that no task uses. It does not
// disturb a running plugin.
func Images(ctx context.Context, args []string, out io.Writer) error {
	images := store.Store{Dir: dirs.Default.Images()}
	switch strings.Join(args, " ") {
	case "":
		return listImages(ctx, images, out)
	case "prune":
		return pruneImages(ctx, images, false, out)
	case "prune --dry-run":
		return pruneImages(ctx, images, true, out)
	}
	return errors.New(imagesUsage)
}

func listImages(ctx context.Context, images store.Store, out io.Writer) error {
	list, err := images.List(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tDIGEST\tSIZE\tLAST USE\tUSED BY")
	for _, usage := range list.Images {
		fmt.Fprintln(table, describeUsage(usage))
	}
	fmt.Fprintf(table, "%d images, %s on disk\n", len(list.Images), humanize.Bytes(uint64(list.Bytes)))
	return table.Flush()
}

func describeUsage(usage store.Usage) string {
	users := cmp.Or(strings.Join(usage.Machines, " "), "-")
	if usage.Err != nil {
		users = fmt.Sprintf("damaged: %v", usage.Err)
	}
	return strings.Join([]string{
		cmp.Or(strings.Join(usage.Names, " "), "-"),
		usage.Digest,
		humanize.Bytes(uint64(usage.Bytes)),
		humanize.Time(usage.LastUse),
		users,
	}, "\t")
}

func pruneImages(ctx context.Context, images store.Store, dryRun bool, out io.Writer) error {
	removed, err := images.Collect(ctx, store.CollectOptions{UnusedFor: time.Nanosecond, DryRun: dryRun})
	verb := "removed"
	if dryRun {
		verb = "would remove"
	}
	for _, usage := range removed {
		fmt.Fprintf(out, "%s %s (%s), %s\n", verb, usage.Digest, cmp.Or(strings.Join(usage.Names, " "), "no name"), humanize.Bytes(uint64(usage.Bytes)))
	}
	fmt.Fprintf(out, "%s %d images\n", verb, len(removed))
	return err
}
