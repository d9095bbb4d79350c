package links

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// pause is the least time between two attempts to renew a lease.
const pause = time.Second / 2

// Keep renews the lease of a machine's address whenever half of it is over, until
// ctx ends. It returns at once if the address does not end. The connection may be
// of an earlier plugin: Interface, MAC and IPv4 are enough, as the kernel knows
// when the address ends. Keep reports each failure by notice, and returns an error
// when the address has ended.
//
// The namespace is opened for each renewal. If it stayed open, it would outlive
// its container.
func Keep(ctx context.Context, open func() (*os.File, error), machine string, c Connection, notice func(error)) error {
	expires, err := expiry(open, c)
	if err != nil || expires.IsZero() {
		return err
	}
	for {
		wait := time.Until(expires) / 2
		if wait <= 0 {
			return fmt.Errorf("keep address %s of machine %s: no server has renewed its lease in time", c.IPv4, machine)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, pause)):
		}
		next, err := renew(ctx, open, machine, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			notice(err)
			continue
		}
		expires = next
	}
}

func renew(ctx context.Context, open func() (*os.File, error), machine string, c Connection) (time.Time, error) {
	namespace, err := open()
	if err != nil {
		return time.Time{}, err
	}
	defer namespace.Close()
	return Renew(ctx, namespace, machine, c)
}

// expiry returns when the kernel will remove the container's address. It is zero
// for never.
func expiry(open func() (*os.File, error), c Connection) (time.Time, error) {
	namespace, err := open()
	if err != nil {
		return time.Time{}, err
	}
	defer namespace.Close()
	container, err := openContainer(namespace)
	if err != nil {
		return time.Time{}, err
	}
	defer container.Close()
	inside, err := container.end(c.Interface)
	if err != nil {
		return time.Time{}, err
	}
	list, err := container.AddrList(inside.Link, netlink.FAMILY_V4)
	if err != nil {
		return time.Time{}, fmt.Errorf("list addresses of %s: %w", c.Interface, err)
	}
	for _, a := range list {
		address, _ := netip.AddrFromSlice(a.IP.To4())
		if address == c.IPv4.Addr() && a.ValidLft != math.MaxUint32 {
			return time.Now().Add(time.Duration(a.ValidLft) * time.Second), nil
		}
		if address == c.IPv4.Addr() {
			return time.Time{}, nil
		}
	}
	return time.Time{}, fmt.Errorf("find address %s on %s: it is gone", c.IPv4, c.Interface)
}
