package download

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// ErrTemporary is matched by errors after which another try may succeed: a
// connection that could not be made or broke, a file that came truncated, a busy
// or broken server (408, 425, 429, 5xx), the time limits of Client. All others are
// permanent.
var ErrTemporary = fetch.ErrTemporary

// errAbsent is matched by errors that say that a file is not there.
var errAbsent = errors.New("file is not there")

// errRedirect marks a redirect that is not followed.
var errRedirect = errors.New("redirect refused")

// status is that of an answer other than the one asked for.
type status int

func (s status) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("the server answered %d %s", int(s), http.StatusText(int(s))))
	switch int(s) {
	case http.StatusUnauthorized:
		text += ": it wants a user and password, or others, in the URL"
	case http.StatusForbidden:
		text += ": it wants other credentials, or there is no such file"
	case http.StatusNotFound, http.StatusGone:
		text += ": check the URL"
	}
	return text
}

// Is takes 403 for a file that is not there: it is what S3 says of one to those
// who may not list the bucket (GetObject, "Permissions").
func (s status) Is(target error) bool {
	switch target {
	case errAbsent:
		return slices.Contains([]status{http.StatusForbidden, http.StatusNotFound, http.StatusGone}, s)
	case ErrTemporary:
		return s >= 500 || slices.Contains([]status{http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}, s)
	}
	return false
}

// explain returns why a request, or the reading of its answer, came to an end.
func explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// It names the URL a redirect led to, which may have a secret in it.
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if lasting(err) {
		return err
	}
	return fetch.Temporary(err)
}

// lasting tells whether a request cannot succeed however often it is tried.
func lasting(err error) bool {
	var name *net.DNSError
	return errors.Is(err, errRedirect) || fetch.Untrusted(err) || errors.As(err, &name) && name.IsNotFound
}
