package ports

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch restores the table as soon as someone removes it, for example with `nft flush
// ruleset`, or removes rules from it. It calls notice for each repair and each failure,
// and returns when ctx ends.
//
// Watch uses netlink directly: the kernel reports every change of nftables, but the
// monitor of google/nftables does not report that a flush has removed a table.
func (t *Table) Watch(ctx context.Context, notice func(repaired bool, err error)) error {
	const group = unix.NFNLGRP_NFTABLES
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (group - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for { // The first iteration finds earlier removals.
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

// awaitRemoval returns when the table, or a chain or rule of it, has been removed, or
// when messages were lost.
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
		if attributes.Type() == unix.NFTA_TABLE_NAME { // chains and rules use the same number
			return attributes.String() == TableName
		}
	}
	return false
}

// repair recreates the table with all machines, unless all rules are there. While they
// are, it does not touch elements, because another plugin process may be removing a
// machine.
func (t *Table) repair() (repaired bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	complete, err := t.isComplete()
	if err != nil {
		return false, fmt.Errorf("check tables %s: %w", TableName, err)
	}
	if complete {
		return false, nil
	}
	err = t.change(func(conn *nftables.Conn) error {
		err := t.addTables(conn)
		for _, machine := range t.machines {
			err = errors.Join(err, addRows(conn, machine))
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("restore tables %s, from which rules have been removed: %w", TableName, err)
	}
	return true, nil
}

// isComplete reports whether each chain has as many rules as it should.
func (t *Table) isComplete() (bool, error) {
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
