
=pod

=head1 NAME

OutboxTest::Standby - standbys that follow, are cut off, and take over

=head1 SYNOPSIS

  my $standby = new_standby($node, 'beta', bootstrap => $kafka->bootstrap);
  cut_off($standby);
  follow($standby, $node);
  kill9_server($node);
  promote($standby);
  rewind($node, $standby);    # the old primary becomes a standby of the new one

The primary needs C<wal_log_hints>, and enough WAL kept, for C<rewind>.

=cut

package OutboxTest::Standby;

use strict;
use warnings;

use Exporter 'import';
use OutboxTest::Cluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(slurp_file system_or_bail);
use Test::More;

our @EXPORT = qw(
  new_standby
  cut_off
  follow
  promote
  rewind
  let_rest
  let_work
  has_no_workers
);

# Options are those of configure_outbox_node.
sub new_standby
{
	my ($primary, $name, %opts) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup("for_$name");
	$standby->init_from_backup($primary, "for_$name", has_streaming => 1);
	configure_outbox_node($standby, %opts);
	$standby->start;
	$primary->wait_for_catchup($standby, 'replay');
	return $standby;
}

# From here on it receives nothing.
sub cut_off
{
	my ($standby) = @_;

	set_conf($standby, primary_conninfo => '');
	wait_for_value($standby, 'postgres', 'SELECT count(*) FROM pg_stat_wal_receiver', '0');
	return;
}

sub follow
{
	my ($standby, $primary) = @_;

	set_conf($standby, primary_conninfo => $primary->connstr);
	wait_for_value($primary, 'postgres',
		"SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", '1');
	$primary->wait_for_catchup($standby, 'replay');
	return;
}

sub promote
{
	my ($standby) = @_;

	$standby->promote;
	wait_for_value($standby, 'postgres', 'SELECT pg_is_in_recovery()', 'f');
	return;
}

# The old primary has ended, however it did.  The settings of both are their own.
sub rewind
{
	my ($old, $new) = @_;
	my $conf = $old->data_dir . '/postgresql.conf';
	my $settings = slurp_file($conf);

	# The source is asked for its timeline as its control file has it.
	$new->safe_psql('postgres', 'CHECKPOINT');
	forget_killed($old);
	system_or_bail('pg_rewind', '--no-sync', '-D', $old->data_dir,
		'--source-server', $new->connstr('postgres'));

	open(my $file, '>', $conf) or die "$conf: $!";
	print $file $settings;
	close($file) or die "$conf: $!";
	$old->append_conf('postgresql.conf',
		"primary_conninfo = '" . $new->connstr . "'\nsynchronous_standby_names = ''");
	$old->append_conf('standby.signal', '');
	$old->start;
	$new->wait_for_catchup($old, 'replay');
	return;
}

# The workers of a node rest, and have done so when this returns.
sub let_rest
{
	my ($node) = @_;

	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'postgres',
		"SELECT bool_and(state = 'resting: outbox.enabled is off') FROM outbox.worker WHERE kind <> 'launcher'",
		't');
	return;
}

sub let_work
{
	my ($node) = @_;

	set_conf($node, 'outbox.enabled' => 'on');
	return;
}

sub has_no_workers
{
	my ($node, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(' ', outbox_pids($node), bridge_pids($node)), '', "$name has no worker, and no bridge");
	is( $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.worker WHERE pid IS NOT NULL'),
		'0', 'as outbox.worker says');
	return;
}

1;
