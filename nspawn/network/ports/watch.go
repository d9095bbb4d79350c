package ports

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch restores the table as soon as somebody removes it, as `nft flush ruleset`
// does, or rules of it. It reports by notice what it has done or could not do,
// and returns when ctx ends.
//
// The kernel reports every change of nftables. The monitor of google/nftables
// passes on no removal of a table that comes with a flush.
func (t *Table) Watch(ctx context.Context, notice func(repaired bool, err error)) error {
	const group = unix.NFNLGRP_NFTABLES
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (group - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for { // The first turn finds what happened before.
		if repaired, err := t.repair(); repaired || err != nil {
			notice(repaired, err)
		}
		if err := awaitRemoval(conn); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("watch nftables: %w", err)
		}
	}
}

// awaitRemoval returns when something of the table was removed that is not an
// element, or when messages were lost.
func awaitRemoval(conn *netlink.Conn) error {
	for {
		messages, err := conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, message := range messages {
			if isRemoval(message) {
				return nil
			}
		}
	}
}

func isRemoval(message netlink.Message) bool {
	switch message.Header.Type {
	case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE,
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN,
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE:
	default:
		return false
	}
	const header = 4 // struct nfgenmsg
	if len(message.Data) < header || message.Data[0] != unix.NFPROTO_INET && message.Data[0] != unix.NFPROTO_BRIDGE {
		return false
	}
	attributes, err := netlink.NewAttributeDecoder(message.Data[header:])
	if err != nil {
		return false
	}
	for attributes.Next() {
		if attributes.Type() == unix.NFTA_TABLE_NAME { // the same number in chains and rules
			return attributes.String() == TableName
		}
	}
	return false
}

// repair makes the table again, with all machines, unless all rules are there.
// It leaves elements alone if the table is: another plugin may be about to
// remove a machine.
func (t *Table) repair() (repaired bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	whole, err := t.whole()
	if err != nil {
		return false, fmt.Errorf("look at tables %s: %w", TableName, err)
	}
	if whole {
		return false, nil
	}
	err = t.change(func(conn *nftables.Conn) error {
		err := t.layAll(conn)
		for _, machine := range t.machines {
			err = errors.Join(err, addRows(conn, machine))
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("restore tables %s, of which somebody has removed rules: %w", TableName, err)
	}
	return true, nil
}

// whole reports whether each chain has as many rules as it should.
func (t *Table) whole() (bool, error) {
	chains := inetChains()
	if t.bridged {
		chains = append(chains, bridgeChains()...)
	}
	for _, chain := range chains {
		have, err := t.conn.GetRules(chain.Table, chain.Chain)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list rules of chain %s: %w", chain.Name, err)
		}
		if len(have) != len(chain.rules) {
			return false, nil
		}
	}
	return true, nil
}
