
=pod

=head1 NAME

OutboxTest::Orders - an application whose orders can be checked afterwards

=head1 SYNOPSIS

  create_orders($node, customers => 40, result_timeout => '5 s');
  my @load = order_load($node, { plain => [ 90, 'SELECT place(:c);' ] }, '-c', 4);
  my $pid = spawn_guarded({}, @load);
  ...
  my $counts = check_orders($node, $kafka);

=head1 DESCRIPTION

The topic C<orders> carries the rows of the table C<orders>, with the customer
as the key; with C<topics> there are several, and each customer has one of them.
Given a C<result_timeout>, results come from C<results>.  The caller makes all
these topics.  With C<skew> the first customers are chosen more often, as
pgbench's random_exponential has it.

SQL function C<place(customer)> places an order.  Its number counts the
customer's orders and is taken under the lock of the customer's row, so that
whoever has the lower number captured and committed before, and committed
numbers have no gap.  C<place_doomed(customer)> places one that is to be rolled
back: it says so in itself, and the sequence C<rollbacks>, which is not rolled
back, counts them.

=cut

package OutboxTest::Orders;

use strict;
use warnings;

use Exporter 'import';
use OutboxTest::Broker qw(partition_of);
use OutboxTest::Guard qw(tool spawn_guarded reap);
use PostgreSQL::Test::Utils ();
use Test::More;

our @EXPORT = qw(create_orders same_orders order_load order_service check_orders);

# of a node
my %customers;
my %choice;    # how pgbench chooses a customer
my %topics;

sub create_orders
{
	my ($node, %opts) = @_;
	my $customers = $opts{customers} // 40;
	my @topics = @{ $opts{topics} // ['orders'] };

	$node->safe_psql('postgres', <<"EOS");
SET client_min_messages = warning;
CREATE TABLE customers (id int PRIMARY KEY, orders int NOT NULL DEFAULT 0)
	WITH (fillfactor = 20);
CREATE TABLE orders (id uuid PRIMARY KEY, customer int, number int, doomed boolean);
CREATE SEQUENCE rollbacks;
CREATE FUNCTION place(customer int, doomed boolean DEFAULT false) RETURNS void LANGUAGE sql
AS \$\$
	WITH c AS (UPDATE customers SET orders = orders + 1 WHERE id = customer RETURNING orders)
	INSERT INTO orders SELECT gen_random_uuid(), customer, c.orders, doomed FROM c;
\$\$;
CREATE FUNCTION place_doomed(customer int) RETURNS void LANGUAGE sql
AS \$\$ SELECT nextval('rollbacks'); SELECT place(customer, true); \$\$;
INSERT INTO customers SELECT generate_series(1, $customers);
EOS
	foreach my $i (0 .. $#topics)
	{
		my $condition = "NEW.customer % " . @topics . " = $i";

		$node->safe_psql('postgres',
			"SELECT outbox.attach('orders', '$topics[$i]', key => 'customer', condition => '$condition')");
		$node->safe_psql('postgres',
			"SELECT outbox.set_topic('$topics[$i]', 'results', result_timeout => '$opts{result_timeout}')")
		  if defined $opts{result_timeout};
	}
	$customers{ $node->name } = $customers;
	$choice{ $node->name } =
	  defined $opts{skew} ? "random_exponential(1, $customers, $opts{skew})" : "random(1, $customers)";
	$topics{ $node->name } = \@topics;
	return;
}

# A copy of a node has its orders.
sub same_orders
{
	my ($copy, $node) = @_;

	$_->{ $copy->name } = $_->{ $node->name } foreach (\%customers, \%choice, \%topics);
	return;
}

# The pgbench command for scripts, { name => [weight, SQL] }, in which :c is a
# customer, :any one whatever the skew, and :gid a number that is hardly used twice.
sub order_load
{
	my ($node, $scripts, @options) = @_;
	my @files;

	foreach my $name (sort keys %$scripts)
	{
		my ($weight, $sql) = @{ $scripts->{$name} };
		my $file = PostgreSQL::Test::Utils::tempdir() . "/$name.sql";

		$sql =~ s/; /;\n/g;
		PostgreSQL::Test::Utils::append_to_file($file,
			"\\set c $choice{$node->name}\n"
			  . "\\set any random(1, $customers{$node->name})\n"
			  . "\\set gid random(1, 1000000000)\n$sql\n");
		push @files, '-f', "$file\@$weight";
	}
	return (
		$node->installed_command('pgbench'),
		'-n', '-h', $node->host, '-p', $node->port, @options, @files,
		'dbname=postgres application_name=pgbench');
}

# The command of the inventory service.  It grants every order, as they are
# orders of nothing.
sub order_service
{
	my ($kafka) = @_;

	return (tool('ktool'), '-b', $kafka->bootstrap, 'service', 'orders', 'results',
		'--by-header');
}

# Compare the orders, their messages and the topic.  Each difference is a failed
# test.  Returns { orders, records, copies, recovered }: how many records are
# repeated, and how many of those at least were sent again by recovery.
sub check_orders
{
	my ($node, $kafka) = @_;
	my %orders = map { $_ => 1 } split /\n/,
	  $node->safe_psql('postgres', 'SELECT id FROM orders');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is( $node->safe_psql('postgres', <<'EOS'), '0|0', 'each order has one message, and no message none');
SELECT count(*) FILTER (WHERE o.id IS NULL OR m.id IS NULL),
	count(*) - count(DISTINCT coalesce(o.id, m.id))
FROM orders AS o
	FULL JOIN outbox.message AS m ON o.id = (m.payload::jsonb ->> 'id')::uuid
EOS

	my $found = { map { $_ => [] } qw(unreadable doomed renamed disordered misplaced) };
	_read_topic($kafka, $_, $found) foreach (@{ $topics{ $node->name } });
	my @lost = grep { !exists $found->{ids}{$_} } keys %orders;
	my @phantoms = grep { !exists $orders{$_} } keys %{ $found->{ids} };

	is_deeply(_few($found->{unreadable}), [], 'every record is an order with a message id');
	is_deeply(_few(\@lost), [], 'every committed order is in Kafka');
	is_deeply(_few(\@phantoms), [], 'and no other');
	is_deeply(_few($found->{doomed}), [], 'none that was rolled back');
	is_deeply(_few($found->{renamed}), [], 'every copy has the same message id');
	is_deeply(_few($found->{disordered}), [], 'first copies are in the order of capture');
	is_deeply(_few($found->{misplaced}), [], 'and in the partition of their key');

	# What was answered before it could be marked SENT has fewer attempts than
	# copies.
	return {
		orders => scalar(keys %orders),
		records => $found->{records},
		copies => $found->{records} - keys %{ $found->{ids} },
		recovered => $node->safe_psql('postgres',
			'SELECT sum(greatest(attempts, 1) - 1) FROM outbox.message'),
	};
}

# ktool writes the records of a partition in their order.  There may be too many
# of them for a decoder of JSON in Perl.
sub _read_topic
{
	my ($kafka, $topic, $found) = @_;
	my $partitions = @{ $kafka->topics->{$topic} };
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/orders.dump';
	my $status = reap(
		spawn_guarded(
			{ stdout => $dump },
			tool('ktool'), '-b', $kafka->bootstrap, 'consume', $topic, '-t', 300),
		0, 310);
	my %last;         # customer => number
	my %partition;    # of a customer

	is($status, 0, "the topic $topic is read");
	open(my $file, '<', $dump) or die "$dump: $!";
	while (my $line = <$file>)
	{
		my ($order, $customer, $number, $doomed) = $line =~
		  /\{\\"id\\":\\"([-0-9a-f]{36})\\",\\"customer\\":(\d+),\\"number\\":(\d+),\\"doomed\\":(\w+)\}/;
		my ($id) = $line =~ /\["id", "([-0-9a-f]{36})"\]/;
		my ($partition) = $line =~ /^\{"partition": (\d+), /;

		$found->{records}++;
		if (!defined $order || !defined $id)
		{
			push @{ $found->{unreadable} }, $line;
			next;
		}
		$partition{$customer} //= partition_of($customer, $partitions);
		push @{ $found->{misplaced} },
		  "customer $customer: partition $partition, not $partition{$customer}, of $topic"
		  if $partition != $partition{$customer};
		push @{ $found->{doomed} }, $order if $doomed ne 'false';
		if (exists $found->{ids}{$order})
		{
			push @{ $found->{renamed} }, $order if $found->{ids}{$order} ne $id;
			next;
		}
		$found->{ids}{$order} = $id;
		push @{ $found->{disordered} },
		  "customer $customer: $number after " . ($last{$customer} // 0)
		  if $number != ($last{$customer} // 0) + 1;
		$last{$customer} = $number;
	}
	close($file);
	unlink($dump);
	return;
}

# The number of them, and some.
sub _few
{
	my ($all) = @_;

	return [] unless @$all;
	return [ scalar(@$all) . ' in all', @$all > 5 ? @$all[ 0 .. 4 ] : @$all ];
}

1;
