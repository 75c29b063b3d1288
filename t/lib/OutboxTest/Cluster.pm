
=pod

=head1 NAME

OutboxTest::Cluster - PostgreSQL::Test::Cluster with outbox in it

=head1 SYNOPSIS

  my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap);
  wait_for_value($node, 'postgres',
      "SELECT count(*) FROM outbox.message WHERE status = 'SENT'", '3');

=cut

package OutboxTest::Cluster;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use OutboxTest::Guard qw(process_state tool wait_for_exit watch_server);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  new_outbox_node
  configure_outbox_node
  push_time
  state_of
  set_conf
  wait_for_value
  wait_until
  dump_state
  outbox_pids
  bridge_pids
  wait_for_exit
  kill9_server
  forget_killed
  start_again
  with_poison
);

# new_outbox_node($name, %opts):
#   bootstrap   outbox.bootstrap_servers
#   conf        further lines of postgresql.conf
#   init        parameters of PostgreSQL::Test::Cluster::init, as a hash
#   extension   databases to make the extension in, as a list
#   start       0: only init
sub new_outbox_node
{
	my ($name, %opts) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	# whatever the machine's locale is
	my %init = %{ $opts{init} // {} };
	$node->init(%init,
		extra => [ '--encoding=UTF8', '--no-locale', @{ $init{extra} // [] } ]);
	configure_outbox_node($node, %opts);
	return $node if defined $opts{start} && !$opts{start};

	$node->start;
	$node->safe_psql($_, 'CREATE EXTENSION outbox')
	  foreach (@{ $opts{extension} // [] });
	return $node;
}

# For nodes that were made in another way (init_from_backup), too.
sub configure_outbox_node
{
	my ($node, %opts) = @_;

	# The test module's defaults are for speed.  What is promised here holds
	# through crashes, so a crash must be survived, and be a real one.
	$node->append_conf('postgresql.conf', <<"EOC");
shared_preload_libraries = 'outbox'
fsync = on
restart_after_crash = on
shared_buffers = 32MB
max_connections = 50
max_worker_processes = 16
max_prepared_transactions = 10
log_min_messages = info
log_statement = none
log_lock_waits = on
EOC
	$node->append_conf('postgresql.conf',
		"outbox.bootstrap_servers = '$opts{bootstrap}'")
	  if defined $opts{bootstrap};
	$node->append_conf('postgresql.conf', $opts{conf})
	  if defined $opts{conf};
	watch_server($node->data_dir);
	return;
}

# Makes what outbox.delayed has due, as the time would
sub push_time
{
	my ($node) = @_;

	$node->safe_psql('postgres',
		"BEGIN;
		 SELECT outbox.announce();
		 UPDATE outbox.delayed SET due_at = clock_timestamp() WHERE due_at > clock_timestamp();
		 SELECT outbox.config_changed();
		 COMMIT");
	return;
}

# The SQLSTATE that a statement fails with, or what it returns
sub state_of
{
	my ($node, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "\\set VERBOSITY sqlstate\n$sql");

	return $status == 0 ? $out : $err =~ s/.*ERROR:  (\w{5}).*/$1/sr;
}

# Change settings of a running node: set_conf($node, 'outbox.publishers' => 4)
sub set_conf
{
	my ($node, %settings) = @_;

	foreach my $name (sort keys %settings)
	{
		(my $value = $settings{$name}) =~ s/'/''/g;
		$node->append_conf('postgresql.conf', "$name = '$value'");
	}
	$node->reload;
	return;
}

# Poll until a query's result is as expected (a string, or a regular
# expression).  Otherwise one failed test, with what there is to see.
sub wait_for_value
{
	my ($node, $db, $sql, $expected, $timeout) = @_;
	my $got;
	my $ok = wait_until(
		undef,
		sub {
			# Without a server psql may end before it was told what to ask,
			# for which IPC::Run dies.
			my ($status, $out, $err) = eval { $node->psql($db, $sql) };

			$got = defined $status && $status == 0 ? $out : 'error: ' . ($err // $@);
			return defined $status && $status == 0
			  && (ref $expected ? $out =~ $expected : $out eq $expected);
		},
		$timeout);

	return 1 if $ok;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	fail("waited for $expected: $sql");
	diag("got: $got");
	dump_state($node, $db);
	return 0;
}

# Poll until a piece of code returns something true, and return that.
# Otherwise a failed test, if it is named.
sub wait_until
{
	my ($what, $code, $timeout) = @_;
	my $deadline = time() + ($timeout // $PostgreSQL::Test::Utils::timeout_default);
	my $pause = 0.01;

	while (1)
	{
		my $result = $code->();

		return $result if $result;
		last if time() > $deadline;
		sleep($pause);
		$pause = $pause * 1.5 if $pause < 0.2;
	}
	if (defined $what)
	{
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		fail("waited for: $what");
	}
	return 0;
}

# Say what the extension's views and the server's log say.
sub dump_state
{
	my ($node, $db) = @_;

	foreach my $view (qw(outbox.worker outbox.topic outbox.stat outbox.subscription))
	{
		my ($status, $out, $err) = $node->psql($db, "SELECT * FROM $view LIMIT 50",
			extra_params => [ '-x' ]);

		diag("$view:\n" . ($status == 0 ? $out : $err));
	}
	my ($status, $out) = $node->psql($db,
		'SELECT topic, status, count(*), max(error) FROM outbox.message GROUP BY 1, 2');
	diag("outbox.message:\n" . ($out // ''));

	my @lines = split /^/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
	splice(@lines, 0, -60) if @lines > 60;
	diag("end of the server's log:\n" . join('', @lines));
	return;
}

# The pids of the workers, or of one kind of them, such as 'publisher'.
sub outbox_pids
{
	my ($node, $kind) = @_;
	my $pattern = defined $kind ? "outbox $kind%" : 'outbox%';

	return split /\n/, $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '$pattern' ORDER BY pid");
}

# The pids of the bridges, which are children of the server's workers.
sub bridge_pids
{
	my ($node) = @_;
	my %parent;
	my @bridges;

	my ($postmaster) = split /\n/,
	  PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid');
	foreach my $path (glob('/proc/[0-9]*/stat'))
	{
		open(my $file, '<', $path) or next;
		my $stat = <$file> // next;
		my ($pid, $name, $state, $parent) = $stat =~ /^(\d+) \((.*)\) (\S) (\d+)/s
		  or next;

		$parent{$pid} = $parent;
		push @bridges, $pid if $name eq 'outbox_bridge' && $state ne 'Z';
	}
	return sort { $a <=> $b }
	  grep { ($parent{ $parent{$_} // 0 } // 0) == $postmaster } @bridges;
}

# End the server with no chance to clean up: all its processes at once, as at a
# loss of power.
sub kill9_server
{
	my ($node) = @_;
	my $pgdata = $node->data_dir;
	my ($postmaster) = split /\n/,
	  PostgreSQL::Test::Utils::slurp_file("$pgdata/postmaster.pid");

	# The postmaster first, so that it starts no more of them.
	kill('KILL', $postmaster);
	my @others = grep { (readlink("/proc/$_/cwd") // '') eq $pgdata }
	  map { m{^/proc/(\d+)$} ? $1 : () } glob('/proc/[0-9]*');
	kill('KILL', @others);
	foreach my $pid ($postmaster, @others)
	{
		wait_for_exit($pid) or croak "process $pid does not end";
	}
	$node->{_pid} = undef;
	return;
}

# A server that was killed leaves its pid, which can look alive for as long as
# nobody has collected it.  No server starts there meanwhile, but it is dead.
sub forget_killed
{
	my ($node) = @_;
	my $file = $node->data_dir . '/postmaster.pid';

	return unless -e $file;
	my ($pid) = split /\n/, PostgreSQL::Test::Utils::slurp_file($file);

	wait_until('the old server is dead', sub { (process_state($pid) // 'Z') eq 'Z' });
	unlink($file, $node->host . '/.s.PGSQL.' . $node->port . '.lock');
	return;
}

sub start_again
{
	my ($node) = @_;

	forget_killed($node);
	$node->start;
	return;
}

# Start a server with the library test/poison.c, by which a record can kill the
# bridge.  What the file is for is said there.
sub with_poison
{
	my ($start, $file) = @_;

	local $ENV{LD_PRELOAD} = tool('poison.so');
	local $ENV{OUTBOX_TEST_POISON} = $file // '';
	$start->();
	return;
}

1;
